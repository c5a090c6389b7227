"""Makes the folder importable: shapes.py is shared by the tests of the decoder and its folders."""
