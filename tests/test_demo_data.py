"""The demo's call and FAQ hold together: what is asked is answered where the data says it is."""

from __future__ import annotations

import re
from itertools import pairwise

from moss_voice import demo
from moss_voice.calls import interims
from moss_voice.faq import MAX_WORDS
from moss_voice.text import is_filler, words


def test_faq_is_of_a_believable_size() -> None:
    """Forty to sixty passages, each with its question, none cut."""
    documents = demo.faq_documents()
    assert 40 <= len(documents) <= 60
    assert len({document.id for document in documents}) == len(documents)
    for document in documents:
        assert re.fullmatch(r"faq#[a-z0-9-]*[a-z0-9]", document.id)
        assert not re.search(r"-2$", document.id)
        assert 20 <= len(document.text.split()) <= MAX_WORDS


def test_faq_does_not_contradict_itself() -> None:
    """A figure that several passages tell is the same in each of them."""
    texts = {document.id: document.text for document in demo.faq_documents()}
    for figure, passages in {
        "0808 157 0142": [
            "what-do-i-do-when-my-phone-is-lost-or-stolen",
            "how-do-i-spot-a-scam-call",
        ],
        "18 or over": ["when-can-an-engineer-come", "how-long-does-installation-take"],
        "24-month contract": [
            "which-broadband-plans-are-there",
            "how-do-i-move-house-with-larkline",
        ],
        "within 28 days": [
            "how-do-i-replace-a-faulty-router",
            "can-i-change-my-mind-after-ordering",
        ],
        "within 30 days": ["can-i-leave-because-of-a-fault", "which-speed-am-i-guaranteed"],
        "PAC to 65075": [
            "how-do-i-bring-my-mobile-number-to-larkline",
            "how-do-i-take-my-number-away-from-larkline",
        ],
    }.items():
        for passage in passages:
            assert figure in texts[f"faq#{passage}"]
    everything = "\n".join(texts.values())
    assert set(re.findall(r"0\d{3} \d{3} \d{4}", everything)) == {"0808 157 0142"}


def test_call_has_what_real_calls_have() -> None:
    """Fillers, hesitations, an interruption, a correction, n-best lists, a hand-over at the end."""
    call = demo.call()
    assert 28 <= len(call.spoken) <= 36
    caller = [turn for turn in call.spoken if turn.speaker == "caller"]
    assert sum(is_filler(turn.text) for turn in caller) >= 3
    assert sum({"uh", "um"} & set(words(turn.text)) != set() for turn in caller) >= 8
    (cut_off,) = [turn for turn in call.turns if turn.interrupted]
    assert cut_off.speaker == "agent"
    assert cut_off.text[-1].isalnum()
    assert any("no, sorry, the fourteenth" in turn.text for turn in caller)
    assert any(turn.nbest for turn in caller)
    assert call.turns[-1].speaker == "action"
    assert "specialist" in call.turns[-1].text


def test_call_has_believable_times() -> None:
    """Speech of 1.5 to 4 words a second; only the interrupted and the backchannelled overlap."""
    call = demo.call()
    assert call.timing == "synthetic"
    assert [turn.number for turn in call.turns] == list(range(len(call.turns)))
    for turn in call.spoken:
        if len(turn.text.split()) > 3:
            assert 1.5 < len(turn.text.split()) / (turn.end_s - turn.start_s) < 4
    for before, after in pairwise(call.spoken):
        assert after.start_s > before.start_s
        if after.start_s < before.end_s:
            assert before.interrupted or is_filler(after.text)


def test_interims_of_the_call_end_in_what_was_said() -> None:
    """A recogniser's last partial has the words of the final transcript."""
    call = demo.call()
    assert sum(bool(turn.partials) for turn in call.turns) >= 2
    for turn in call.spoken:
        assert words(list(interims(turn))[-1]) == words(turn.text)


def test_questions_are_answered_in_the_turns_they_name() -> None:
    """Each named turn is a spoken one and answers in the stated words."""
    turns = {turn.number: turn for turn in demo.call().spoken}
    questions = demo.questions()
    assert len(questions) >= 10
    for question in questions:
        assert question.turns
        for number in question.turns:
            assert question.answer.casefold() in turns[number].text.casefold(), question.query
    early = [question for question in questions if min(question.turns) < 10]
    assert len(early) >= 4


def test_knowledge_turns_name_passages_of_the_faq() -> None:
    """A turn that needs knowledge is the caller's, and its passages exist."""
    call = demo.call()
    ids = {document.id for document in demo.faq_documents()}
    turns = {turn.number: turn for turn in call.turns}
    assert len(call.knowledge) >= 6
    for number, gold in call.knowledge:
        assert turns[number].speaker == "caller"
        assert set(gold) <= ids


def test_the_agent_tells_the_figures_of_the_faq() -> None:
    """What the agent promises in speech is what the FAQ says in writing."""
    texts = {document.id: document.text for document in demo.faq_documents()}
    turns = {turn.number: turn.text for turn in demo.call().turns}
    for number, spoken, passage, written in [
        (16, "five working days", "when-can-an-engineer-come", "five working days"),
        (16, "up to two hours", "when-can-an-engineer-come", "up to two hours"),
        (16, "from eight to one", "when-can-an-engineer-come", "between 8am and 1pm"),
        (25, "eight pounds fifty", "will-i-be-compensated-when-my-broadband-is-down", "£8.50"),
        (29, "six pounds", "roaming-in-zone-2-turkey-the-usa-canada-australia", "£6"),
        (29, "one gigabyte", "roaming-in-zone-2-turkey-the-usa-canada-australia", "1 GB"),
        (31, "twenty five gigabytes", "roaming-in-europe-zone-1", "25 GB"),
        (33, "eleven pounds", "what-does-it-cost-to-end-my-broadband-contract-early", "£11"),
        (33, "thirty days", "can-i-leave-because-of-a-fault", "30 days"),
    ]:
        assert spoken in turns[number]
        assert written in texts[f"faq#{passage}"]
