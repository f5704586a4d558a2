"""The matrix: what each fault does to each operation, through the front door, and what holds again when the fault is over.

``table`` says what has to happen, and is the only place that does: ``docs/reliability.md`` is made from it (``tests.matrix.page``).
``columns`` brings the faults about, ``operations`` is what is done meanwhile, ``scenario`` runs one fault and notes what was seen, and
``test_matrix`` compares that with the table, a test a cell.
"""
