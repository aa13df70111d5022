//! Runs the program and shows what came out.

use std::path::Path;
use std::process::{Command, Output};

use expect_test::Expect;

/// The program, with an environment that cannot change what it says.
pub(crate) fn p2(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_p2"));
    command.current_dir(folder).args(arguments);
    for variable in ["P2_FAULT", "NO_COLOR", "COLUMNS", "RUST_BACKTRACE"] {
        command.env_remove(variable);
    }
    command
}

/// Runs the program in `folder` and compares everything it says.
pub(crate) fn check(folder: &Path, arguments: &[&str], expected: &Expect) {
    expected.assert_eq(&show(&p2(folder, arguments).output().unwrap()));
}

/// Exit code, stdout and stderr as one text; the system's own words are left out.
fn show(output: &Output) -> String {
    let code = output
        .status
        .code()
        .map_or_else(|| "none".to_owned(), |code| code.to_string());
    let stdout = String::from_utf8(output.stdout.clone()).unwrap();
    let stderr = String::from_utf8(output.stderr.clone()).unwrap();
    format!("exit: {code}\n--- stdout\n{stdout}--- stderr\n{stderr}")
}
