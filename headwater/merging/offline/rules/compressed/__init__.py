"""Rules that keep less of each adapter than it has: signs, few directions, large values."""
