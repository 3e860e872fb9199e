"""Properties that hold for whatever comes."""
