"""See tare.msmodelslim."""
