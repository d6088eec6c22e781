"""Ctrl+C ends a process whatever adapter it meets, though an adapter that raises the same does not."""

import signal
import subprocess
import sys

import pytest

PROGRAM = """
import asyncio, signal, sys, time
from chatx import AdapterError, Chat

signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever started this may ignore it


def stuck(*_):
    print("inside", flush=True)
    while True:
        time.sleep(0.01)


class Auth:
    def authorize(self, user_id, room_id, action):
        if user_id == "alice":
            stuck()
        raise KeyboardInterrupt


async def main():
    chat = Chat(auth=Auth())
    if sys.argv[1] == "telemetry":
        chat = Chat()
        chat.telemetry.attach("broadcast", stuck)
    if sys.argv[1] == "callback":
        chat = Chat()
    async with chat:
        if sys.argv[1] == "auth":
            try:
                await chat.send_message("room", "bob", "hello")
            except AdapterError:
                print("contained", flush=True)
        if sys.argv[1] == "callback":
            await chat.subscribe_callback("room", stuck)
        await chat.send_message("room", "alice", "hello")


try:
    if sys.argv[2] == "runner":
        asyncio.run(main())
    else:
        asyncio.new_event_loop().run_until_complete(main())
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


@pytest.mark.process
@pytest.mark.parametrize("loop", ["runner", "bare"])
@pytest.mark.parametrize("place", ["auth", "telemetry", "callback"])
def test_a_signal_ends_the_process_amid_an_adapter(place: str, loop: str) -> None:
    program = subprocess.Popen([sys.executable, "-c", PROGRAM, place, loop], stdout=subprocess.PIPE, text=True)
    assert program.stdout is not None
    try:
        if place == "auth":
            assert program.stdout.readline() == "contained\n"
        assert program.stdout.readline() == "inside\n"
        program.send_signal(signal.SIGINT)
        if loop == "runner":
            # The first one only asks the main task to end, which an adapter that blocks the loop keeps from hearing.
            # Sent again until it is seen: two that come at once are one.
            while program.poll() is None:
                try:
                    program.wait(0.2)
                except subprocess.TimeoutExpired:
                    program.send_signal(signal.SIGINT)
        out, _ = program.communicate(timeout=50)
        # A runner's further signals may come while it ends already.
        assert loop == "runner" or (out, program.returncode) == ("interrupted\n", 0)
    finally:
        program.kill()
        program.wait()
        program.stdout.close()
