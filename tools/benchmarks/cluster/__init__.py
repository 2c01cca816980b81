"""Stages on several machines: what it costs, measured on one machine, and what it would give, by a model.

`model.py` has the formulas and knows no measurement. `measured.py` keeps what was measured. `forecast.py` makes the
table and the picture of both.
"""
