"""Tests of the whole: archives made by other tools and by hand, converted by the command, mounted, compared with an independent unpack."""
