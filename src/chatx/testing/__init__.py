"""What tests of applications built on chatx share with chatx's own tests."""

from chatx.testing.loop import VirtualLoop, run_virtual

__all__ = ["VirtualLoop", "run_virtual"]
