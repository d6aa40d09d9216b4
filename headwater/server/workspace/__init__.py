"""The server's folder: settings, certificates, registry of devices, queue of runs, backups."""
