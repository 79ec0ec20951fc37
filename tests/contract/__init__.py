"""The contract that every storage class keeps, proved byte by byte."""
