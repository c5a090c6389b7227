"""Makes the folder importable: scripted_engine.py is shared by the tests of reason/ and evals/."""

import signal

# A shell that starts the tests in the background ignores Ctrl-C for them, and so would every program
# that they start; with a handler here those begin with the usual behaviour.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
