"""Runs Autobahn's cases against a server in a process of its own, since kosoku changes modules that it finds there.

`python autobahn.py URL AT_ONCE CASES...` writes a list of case, behaviour, behaviour at the close and close code.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys

from kosoku import FailureError, run_fuzzingclient


async def main(url: str, at_once: str, *cases: str) -> None:
    try:
        results = await run_fuzzingclient(url, cases, concurrency=int(at_once))
    except FailureError as failure:
        results = failure.results
    told = [
        (each.case_id, each.behavior.value, each.behavior_close.value, each.remote_close_code or 0) for each in results
    ]
    print(json.dumps(told), flush=True)
    os._exit(0)  # its threads may abort a process that ends in the ordinary way


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
