"""The verbs of the command line: a .py file is a verb, a folder is a study."""
