"""The dashboard: pages for people over the same parts as the API, with a session in place of a key.

The law: a page shows what the key may read and offers what it may do; a key is never kept, only a token of
some hours, in a cookie that no script can read; nothing changes but by a form of this very session; no
value is markup, and no other host is asked for anything.
"""
