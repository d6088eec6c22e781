"""Texts and ids that show what an adapter does to them."""

from __future__ import annotations

# What text may look like: an adapter that encodes, escapes, trims, folds or normalises it shows on one of these.
CONTENTS = (
    "hello",
    " spaces around ",
    "tab\tand\r\nlines\n",
    '\'; DROP TABLE messages; -- "quoted" \\ %s {} $1',
    "<b>&amp;</b>",
    "e\u0301 is not \u00e9",
    "\u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627",
    "日本語 \U0001f469\u200d\U0001f469\u200d\U0001f466 \U0001f3f3\ufe0f\u200d\U0001f308",
    "\ufeff\u00a0\u200b",
    "line\u2028separator, paragraph\u2029separator, return\rbare",
    "0",
    "null",
    "x" * 4096,
)
# What `str.splitlines` takes for the end of a line, as whoever keeps one message a line may. The engine refuses some of
# them in content; who splits on one splits on the others.
LINE_BREAKS = ("\n", "\r", "\r\n", "\v", "\f", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029")
# Ids are 1 to 128 bytes of UTF-8 without control and format characters.
USER_IDS = ("alice", "Alice", "a b/c:d?e#f%20", "50%' OR '1'='1", "Zoë", "用户", "\U0001f600", "ü" * 64)
