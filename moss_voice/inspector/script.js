"use strict";
// Wires what the templates wrote: it makes no markup of its own, and the page can be read without it.
(() => {
  const $ = (selector, root = document) => root.querySelector(selector);
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const live = document.body.classList.contains("live");
  for (const each of all(".scripted")) each.hidden = false;

  // --- to what an address names ---
  const reveal = (target) => {
    if (!target) return;
    if (target.matches("details")) target.open = true;
    for (let at = target.closest("details"); at; at = at.parentElement.closest("details")) at.open = true;
  };
  const named = () => {
    const target = location.hash.length > 1 && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (!target) return;
    reveal(target);
    target.scrollIntoView({ block: "start" });
  };
  addEventListener("hashchange", named);
  named();

  // --- time axis ---
  const axis = $("#lanes");
  const bars = all(".turn-bar, .context-mark", axis);
  bars.forEach((bar, place) => bar.setAttribute("tabindex", place ? "-1" : "0"));
  axis.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    const place = bars.indexOf(event.target.closest("a"));
    if (!step || place < 0) return;
    event.preventDefault();
    const next = bars[Math.min(bars.length - 1, Math.max(0, place + step))];
    bars[place].setAttribute("tabindex", "-1");
    next.setAttribute("tabindex", "0");
    next.focus();
  });
  const usual = Number(axis.dataset.width);
  const box = axis.closest(".scroll");
  const widen = (to) => {
    const middle = (box.scrollLeft + box.clientWidth / 2) / axis.clientWidth;
    const width = Math.round(Math.min(usual * 16 + box.clientWidth, Math.max(box.clientWidth, to)));
    axis.setAttribute("width", width <= box.clientWidth ? "100%" : width);
    axis.classList.toggle("near", width >= usual * 2);
    axis.classList.toggle("whole", width < usual * 0.75);
    axis.classList.toggle("crowded", width < usual * 0.75);
    box.scrollLeft = middle * width - box.clientWidth / 2;
  };
  for (const button of all("[data-zoom]")) {
    const by = { whole: 0, out: 0.5, in: 2 }[button.dataset.zoom];
    button.addEventListener("click", () => widen(axis.clientWidth * by));
  }

  // --- the transcript ---
  const turns = all(".turns > .turn");
  const find = $("#find");
  const only = $("#only-contexts");
  const sift = () => {
    const words = find.value.trim().toLowerCase();
    let shown = 0;
    for (const turn of turns) {
      const said = $(".said", turn).textContent.toLowerCase();
      const kept = (!words || said.includes(words)) && (!only.checked || $(".recall", turn));
      turn.hidden = !kept;
      shown += kept ? 1 : 0;
    }
    $("#find-told").textContent = words || only.checked ? `${shown} of ${turns.length}` : "";
  };
  find.addEventListener("input", sift);
  only.addEventListener("change", sift);

  const stops = () => turns.filter((turn) => !turn.hidden && $(".recall", turn)).map((turn) => $(".recall > summary", turn));
  const step = (by) => {
    const places = stops();
    if (!places.length) return;
    let at = places.indexOf(document.activeElement);
    if (at < 0) {
      // From what is on the screen, or from where somebody is within a turn.
      const inside = document.activeElement?.closest?.(".turn");
      const line = inside ? inside.getBoundingClientRect().top : 80;
      const after = places.findIndex((place) => place.closest(".turn").getBoundingClientRect().top >= line);
      at = by > 0 ? (after < 0 ? places.length : after) - (inside && places[after]?.closest(".turn") === inside ? 0 : 1) : after < 0 ? places.length : after;
    }
    const next = places[Math.min(places.length - 1, Math.max(0, at + by))];
    next.focus({ preventScroll: true });
    next.closest(".turn").scrollIntoView({ block: "start" });
  };

  // --- keys ---
  const keys = $("#keys");
  $("#keys-open").addEventListener("click", () => keys.showModal());
  const search = live ? $("#search-text") : find;
  const typing = (target) => target.matches("input:not([type=checkbox], [type=radio], [type=range]), textarea, select");
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || keys.open) return;
    if (typing(event.target)) {
      if (event.key === "Escape") event.target.blur();
      return;
    }
    const onTurn = event.target.matches(".recall > summary");
    const does = {
      j: () => step(1),
      k: () => step(-1),
      ArrowDown: onTurn && (() => step(1)),
      ArrowUp: onTurn && (() => step(-1)),
      "/": () => { search.focus(); search.select(); },
      c: $("#compare") && (() => {
        reveal($("#compare-form") ?? $("#compare"));
        $("#compare").scrollIntoView({ block: "start" });
        $("#side-b input, #compare summary, #compare a")?.focus({ preventScroll: true });
      }),
      "?": () => keys.showModal(),
    }[event.key];
    if (!does) return;
    event.preventDefault();
    does();
  });
  if (!live) return;

  // --- what the server is asked ---
  const names = (text) => text.split(",").map((name) => name.trim()).filter(Boolean);
  const settings = (root) => {
    const value = (name) => $(`[name=${name}]`, root).value;
    const number = (name) => (value(name) === "" ? undefined : Number(value(name)));
    const told = {
      alpha: number("alpha"),
      top_k: number("top_k"),
      min_score: number("min_score"),
      max_tokens: number("max_tokens"),
      without: all("[name=part]", root).filter((box) => !box.checked).map((box) => box.value),
    };
    const focus = value("focus");
    if (focus === "found") told.focus = null;
    if (focus === "off") told.focus = [];
    if (focus === "fields") told.focus = names(value("focus_fields"));
    return told;
  };
  const asking = {};
  const ask = async (what, told) => {
    asking[what]?.abort();
    const mine = (asking[what] = new AbortController());
    const place = $(`#${what}-answer`);
    const status = $(`#${what}-status`);
    place.classList.add("busy");
    place.setAttribute("aria-busy", "true");
    try {
      const answer = await fetch(what, {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify(told),
        signal: mine.signal,
      });
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      if (mine.signal.aborted) return;
      place.replaceChildren(...page.body.childNodes);
      // It stands in the answer; this is for those who do not see it.
      status.classList.add("unseen");
      status.textContent = $(".told, [role=alert]", place)?.textContent ?? "";
    } catch (error) {
      if (mine.signal.aborted) return;
      place.replaceChildren();
      status.classList.remove("unseen");
      status.textContent = "The inspector does not answer. Is moss-voice inspect still running?";
    }
    place.classList.remove("busy");
    place.removeAttribute("aria-busy");
  };
  for (const slider of all("input[type=range]")) {
    slider.addEventListener("input", () => {
      document.getElementById(slider.dataset.told).textContent = Number(slider.value).toFixed(2);
    });
  }

  const form = $("#search-form");
  const handNames = () => all("#names .name").map((name) => name.textContent);
  const searchNow = () => {
    const told = { ...settings(form), text: form.elements.text.value, scope: form.elements.scope.value };
    if (!told.text.trim()) return;
    told.is_turn = form.elements.is_turn.checked;
    if (form.elements.until.value !== "") told.until = Number(form.elements.until.value);
    if (form.elements.filter.value.trim()) told.filter = form.elements.filter.value;
    if (form.elements.by_hand.checked) told.focus_on = handNames();
    return ask("search", told);
  };
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    searchNow();
  });
  let soon;
  form.addEventListener("input", (event) => {
    if (event.target.name === "text" || event.target.closest("#filter, #name")) return;
    clearTimeout(soon);
    soon = setTimeout(searchNow, 180);
  });

  // Names in focus.
  const name = $("#name");
  const addName = () => {
    const told = name.value.trim();
    if (!told || handNames().includes(told)) return;
    const chip = $("#name-chip").content.cloneNode(true);
    $(".name", chip).textContent = told;
    $("#names").prepend(chip);
    form.elements.by_hand.checked = true;
    name.value = "";
    searchNow();
  };
  $("#name-add").addEventListener("click", addName);
  name.addEventListener("keydown", (event) => {
    if (event.key !== "Enter") return;
    event.preventDefault();
    addName();
  });
  $("#names").addEventListener("click", (event) => {
    const chip = event.target.closest("[role=listitem]");
    if (!chip) return;
    chip.remove();
    name.focus();
    searchNow();
  });

  // The filter: conditions in rows write the JSON, which is what is sent.
  const rows = $("#filter-rows");
  const json = $("#filter-json");
  const literal = (text) => {
    const told = text.trim();
    if (told === "true" || told === "false") return told === "true";
    return told !== "" && Number.isFinite(Number(told)) ? Number(told) : told;
  };
  const written = () => {
    const conditions = all(".row", rows).filter((row) => $(".field", row).value.trim()).map((row) => {
      const operator = $("select", row).value;
      const text = $(".value", row).value;
      const many = operator === "$in" || operator === "$nin";
      const value = many ? names(text).map(literal) : operator === "$near" ? text.trim() : literal(text);
      return { field: $(".field", row).value.trim(), condition: { [operator]: value } };
    });
    const told = conditions.length > 1 ? { [$("#filter-join").value]: conditions } : conditions[0];
    json.value = told ? JSON.stringify(told) : "";
  };
  $("#filter-add").addEventListener("click", () => {
    rows.append($("#filter-row").content.cloneNode(true));
    $(".field", rows.lastElementChild).focus();
  });
  rows.addEventListener("input", written);
  $("#filter-join").addEventListener("change", written);
  rows.addEventListener("click", (event) => {
    if (!event.target.closest("button")) return;
    event.target.closest(".row").remove();
    written();
    $("#filter-add").focus();
  });

  // What a turn asked, asked again.
  document.addEventListener("click", (event) => {
    const button = event.target.closest("button.ask");
    if (!button) return;
    const { query, turn, until } = button.dataset;
    form.elements.text.value = query;
    form.elements.is_turn.checked = true;
    form.elements.until.value = until;
    const back = $("#search-back");
    back.hidden = turn === "";
    back.href = `#turn-${turn}`;
    $("span", back).textContent = turn;
    if (getComputedStyle($("#search")).position !== "sticky") $("#search").scrollIntoView({ block: "start" });
    search.focus({ preventScroll: true });
    searchNow();
  });

  // Two settings side by side.
  const recorded = $("#as-recorded");
  recorded.addEventListener("change", () => { $("#side-a-settings").disabled = recorded.checked; });
  $("#compare-form").addEventListener("submit", (event) => {
    event.preventDefault();
    $("#compare-status").classList.remove("unseen");
    $("#compare-status").textContent = "Running the call again …";
    ask("compare", { a: recorded.checked ? null : settings($("#side-a")), b: settings($("#side-b")) });
  });
})();
