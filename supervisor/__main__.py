"""jobd's command line: arguments → configuration → daemon. The only exit, the only map from error to exit code.

Importing this module is cheap: helper processes of multiprocessing import it once more.
"""

from __future__ import annotations

import sys

EXIT_STOPPED, EXIT_BUG, EXIT_USAGE, EXIT_HELD, EXIT_CONFIG = 0, 1, 2, 75, 78


def main() -> None:
    """Run jobd. Never returns: the process ends with one of CONTRACT 1's exit codes."""
    import logging
    import os
    import traceback

    try:
        code = _run(sys.argv[1:])
    except SystemExit as error:  # argparse: --version, wrong usage
        code = error.code if isinstance(error.code, int) else EXIT_USAGE
    except BaseException:
        traceback.print_exc()
        code = EXIT_BUG
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    # Not sys.exit: multiprocessing would wait for helpers that must outlive the daemon with their jobs.
    os._exit(code)


def _run(argv: list[str]) -> int:
    from supervisor import cli, config, daemon

    options = cli.parse(argv)
    checked = config.check(options.config)
    if options.check:
        return cli.print_check(checked, options)
    cli.set_up_logging(options.log_format)
    cli.log_problems(checked)
    if checked.config is None:
        return EXIT_CONFIG
    try:
        daemon.Daemon(checked.config, cli.find_paths(options, checked.config)).run()
    except daemon.HeldError as error:
        print(f"jobd: {error}", file=sys.stderr)
        return EXIT_HELD
    except daemon.SetUpError as error:
        print(f"jobd: {error}", file=sys.stderr)
        return EXIT_CONFIG
    return EXIT_STOPPED


if __name__ == "__main__":
    main()
