"""Makes the folder importable: scripted_engine.py is shared by the tests of reason/ and evals/."""
