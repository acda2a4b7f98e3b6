"""Fuzzed requests over every method of a real server: what nobody would send on purpose, and what somebody will.

methods    every method, from the contract's descriptors
values     what a field may hold: of this world, or odd
messages   messages made of such values, field by field
damage     messages that are broken as bytes
requests   requests: a method, messages, a deadline, a cancellation; each made anew from seed and number
calls      how they are sent
verdicts   what an answer may be
world      the server, and what is known of it
soak       all of it, and the result
"""
