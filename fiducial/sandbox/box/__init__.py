"""What runs inside the sandbox: the harness that holds the tests, and the process that runs the candidate's code.

Standard library only, and no imports from the rest of the package: `fiducial.sandbox.spawn` sends these modules into
the sandbox as code, in the order of `MODULES`.
"""

MODULES = ("wire", "program", "tests", "candidate", "harness")
