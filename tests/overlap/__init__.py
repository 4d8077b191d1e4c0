"""Tests of esa.overlap."""
