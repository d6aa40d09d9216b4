"""Who says so: keys, signatures, certificates and the enrolment of devices."""
