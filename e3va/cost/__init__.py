"""What a method costs: parameters, bytes, saved activations, time."""
