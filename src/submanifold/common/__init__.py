"""What every other package uses: errors, atomic files, progress, devices, typed settings."""
