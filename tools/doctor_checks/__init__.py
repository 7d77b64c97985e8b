"""What tools/doctor.py checks. Standard library only, so that it runs where nothing is installed yet."""
