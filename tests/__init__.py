"""Tests of what the package promises."""
