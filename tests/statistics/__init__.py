"""Tests of esa.statistics."""
