"""The vocabularies that open models come with, each read into one form (`vocabulary.Vocabulary`)."""
