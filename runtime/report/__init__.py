"""What a run cost and how good it was: JSON for programs, CSV for spreadsheets, HTML and a table for people.

Every figure carries its name, unit, origin and definition. Origins:

    measured   counted by the emulator while it ran these inputs
    modelled   follows from the counts by a formula: cycles, time, energy
    paper      taken from a publication: the entries of the energy tables
"""
