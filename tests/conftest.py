"""Makes the folder importable: scripted_engine.py is shared by the tests of reason/ and evals/."""

import importlib.util
import os
import signal
import sys

from hypothesis import settings

# On a busy machine an example may take a hundred times as long as when it is repeated; that says nothing.
settings.register_profile("ayllu", deadline=None)
settings.load_profile("ayllu")

# `make test-native`: the extension that was built with sanitizers takes the installed one's place.
if extension := os.environ.get("AYLLU_TEST_EXTENSION"):
    spec = importlib.util.spec_from_file_location("ayllu.native._native", extension)
    assert spec is not None and spec.loader is not None, extension
    sys.modules["ayllu.native._native"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["ayllu.native._native"])

# A shell that starts the tests in the background ignores Ctrl-C for them, and so would every program
# that they start; with a handler here those begin with the usual behaviour.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
