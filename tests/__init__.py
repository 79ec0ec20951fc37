"""Tests of blockd."""
