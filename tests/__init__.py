"""The test suite, and the slow second route (`oracle`) that it checks the package against."""
