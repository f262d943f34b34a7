"""The commands that a device needs: run, bench, check, inspect, devices, doctor, completion."""
