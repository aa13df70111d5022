//! Each rule with one file that keeps it and one that breaks it.

use super::*;

/// `expected` holds, for each finding, its line and a part of its message.
fn check(path: &str, source: &str, expected: &[(usize, &str)]) {
    let findings = RustFile::new(path, source).check();
    assert_eq!(findings.len(), expected.len(), "{path}: {findings:?}");
    for (finding, (line, part)) in findings.iter().zip(expected) {
        assert_eq!(finding.line, *line, "{finding}");
        assert!(
            finding.message.contains(part),
            "{finding} does not say {part:?}"
        );
    }
}

#[test]
fn a_file_starts_with_its_purpose() {
    check("a.rs", "//! Purpose.\n", &[]);
    check("a.rs", "\n//! Purpose.\n", &[(1, "//!")]);
    check("a.rs", "/// Purpose.\nfn f() {}\n", &[(1, "//!")]);
}

#[test]
fn files_have_a_length_limit_without_their_tests() {
    let file =
        |n_lines: usize, tests: &str| format!("//! A.\n{}{tests}", "a();\n".repeat(n_lines - 1));
    let tests = format!("#[cfg(test)]\nmod tests {{\n{}}}\n", "a();\n".repeat(100));
    check("src/a.rs", &file(400, ""), &[]);
    check("src/a.rs", &file(400, &tests), &[]);
    check("src/a.rs", &file(401, ""), &[(0, "401 lines")]);
    check("crates/p2/tests/a.rs", &file(800, ""), &[]);
    check("crates/p2/tests/a.rs", &file(801, ""), &[(0, "801 lines")]);
    check("src/a/tests.rs", &file(800, ""), &[]);
}

#[test]
fn functions_have_a_length_limit() {
    let function = |n_lines: usize| format!("fn f() {{\n{}}}\n", "a();\n".repeat(n_lines - 2));
    check("src/a.rs", &format!("//! A.\n{}", function(60)), &[]);
    check(
        "src/a.rs",
        &format!("//! A.\n\n{}", function(61)),
        &[(3, "fn f has 61 lines")],
    );
    let in_tests = |n_lines| {
        format!(
            "//! A.\n#[cfg(test)]\nmod tests {{\n{}}}\n",
            function(n_lines)
        )
    };
    check("src/a.rs", &in_tests(120), &[]);
    check("src/a.rs", &in_tests(121), &[(4, "at most 120")]);
}

#[test]
fn names_say_something() {
    check("src/utils.rs", "//! A.\n", &[(0, "`utils`")]);
    check("tests/common/mod.rs", "//! A.\n", &[(0, "`common`")]);
    check("src/a.rs", "//! A.\nmod helper;\n", &[(2, "mod helper")]);
    check("src/a.rs", "//! A.\nlet common = gcd(a, b);\n", &[]);
    check("src/manager_of_runs.rs", "//! A.\n", &[]);
}

#[test]
fn words_come_from_the_glossary() {
    check(
        "src/a.rs",
        "//! A.\nlet alphas_cumprod = 1;\n",
        &[(2, "alpha_bar")],
    );
    check(
        "src/a.rs",
        "//! Others say alphas_cumprod.\nlet a = \"alphas_cumprod\";\n",
        &[],
    );
    check("src/import_pt.rs", "//! A.\nlet alphas_cumprod = 1;\n", &[]);
    check("tests/a.rs", "//! A.\nlet x_start = 1;\n", &[]);
    check("src/a.rs", "//! A.\nlet x_starts = max_start;\n", &[]);
}

#[test]
fn code_that_the_compiler_cannot_check_stays_in_the_kernels() {
    check(
        "crates/nn/src/a.rs",
        "//! A.\nunsafe { f() }\n",
        &[(2, "crates/kernels/")],
    );
    check("crates/kernels/src/a.rs", "//! A.\nunsafe { f() }\n", &[]);
    check(
        "crates/nn/src/a.rs",
        "//! unsafe?\n#![forbid(unsafe_code)]\n",
        &[],
    );
}

#[test]
fn libraries_do_not_touch_the_outside_world() {
    check(
        "crates/nn/src/a.rs",
        "//! A.\nuse std::fs::File;\n",
        &[(2, "std::fs")],
    );
    check(
        "crates/nn/src/a.rs",
        "//! A.\nuse std::time::Instant;\n",
        &[(2, "Instant")],
    );
    check("crates/p2/src/a.rs", "//! A.\nuse std::fs::File;\n", &[]);
    check(
        "crates/nn/benches/a.rs",
        "//! A.\nuse std::time::Instant;\n",
        &[],
    );
}

#[test]
fn what_is_left_to_do_has_an_issue() {
    check("src/a.rs", "//! A.\n// TODO(#12): faster\n", &[]);
    check(
        "src/a.rs",
        "//! A.\n// TODO: faster\n",
        &[(2, "TODO(#123)")],
    );
    check(
        "src/a.rs",
        "//! A.\n/* FIXME(me) */\n",
        &[(2, "FIXME(#123)")],
    );
    check(
        "src/a.rs",
        "//! A.\n// TODO(#): faster\n",
        &[(2, "TODO(#123)")],
    );
    check("src/a.rs", "//! A.\nlet a = \"TODO\";\n", &[]);
}

#[test]
fn paths_of_one_machine_are_found() {
    for folder in MACHINE_FOLDERS {
        assert!(
            machine_path(&format!("open(\"/{folder}/a\")")).is_some(),
            "{folder}"
        );
        assert!(
            machine_path(&format!("open(\"runs/{folder}/a\")")).is_none(),
            "{folder}"
        );
        assert!(
            machine_path(&format!("open(\"$HOME/{folder}/a\")")).is_none(),
            "{folder}"
        );
    }
    check(
        "src/a.rs",
        "//! A.\n// see /home/me\n",
        &[(2, "one machine")],
    );
    check("tests/a.rs", "//! A.\n// see /home/me\n", &[]);
}
