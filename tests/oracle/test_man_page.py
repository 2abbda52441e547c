"""groff, with all its warnings, has nothing to say about the manual page."""
import subprocess

from conftest import TARE_BIN


def test_groff_warns_of_nothing():
    page = TARE_BIN.parent / "tare.1"
    done = subprocess.run(["groff", "-ww", "-mandoc", "-Tascii", "-rHY=0", str(page)],
                          capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == ""
    assert "tare - quantizes large language models after training" in done.stdout.replace("\b", "")
