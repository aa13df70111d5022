//! Which crate may use which: the arrows of ARCHITECTURE.md, read from the manifests.

use super::Finding;

/// What a crate of the workspace may use of the workspace: everything that its arrows reach.
///
/// `kernels <- nn <- metrics <- p2` and `diffusion <- p2`; there are no others.
const ARROWS: &[(&str, &[&str])] = &[
    ("crates/kernels/Cargo.toml", &[]),
    ("crates/nn/Cargo.toml", &["p2-kernels"]),
    ("crates/metrics/Cargo.toml", &["p2-nn", "p2-kernels"]),
    ("crates/diffusion/Cargo.toml", &[]),
    (
        "crates/p2/Cargo.toml",
        &["p2-metrics", "p2-nn", "p2-kernels", "p2-diffusion"],
    ),
    ("xtask/Cargo.toml", &[]),
    ("fuzz/Cargo.toml", &["p2", "p2-nn"]),
];

/// Crates of others that belong to some layers only.
const KEPT_TO: &[(&str, &[&str], &str)] = &[
    (
        "candle-core",
        &[
            "crates/nn/",
            "crates/metrics/",
            "crates/diffusion/",
            "crates/p2/",
        ],
        "kernels see slices, not tensors",
    ),
    (
        "anyhow",
        &["crates/p2/"],
        "a library has an error type of its own",
    ),
];

/// Checks one `Cargo.toml`.
pub(super) fn check(path: &str, text: &str) -> Vec<Finding> {
    let finding = |line, message| Finding {
        path: path.into(),
        line,
        message,
    };
    if path == "Cargo.toml" {
        return Vec::new();
    }
    let Some((_, allowed)) = ARROWS.iter().find(|(known, _)| *known == path) else {
        let message = "a new crate is agreed first, then listed in xtask/src/tidy/manifest.rs";
        return vec![finding(0, message.into())];
    };
    let mut findings = Vec::new();
    for (line, name) in dependencies(text) {
        let is_ours = name == "p2" || name == "xtask" || name.starts_with("p2-");
        if is_ours && !allowed.contains(&name) {
            findings.push(finding(
                line,
                format!("`{name}` is a new arrow between the crates"),
            ));
        }
        for (kept, folders, why) in KEPT_TO {
            if name == *kept && !folders.iter().any(|folder| path.starts_with(folder)) {
                findings.push(finding(
                    line,
                    format!("`{name}` does not belong here: {why}"),
                ));
            }
        }
    }
    if !has_workspace_lints(text) {
        findings.push(finding(0, "add `[lints]` with `workspace = true`".into()));
    }
    findings
}

/// The names under `[dependencies]` and its kin, with their line numbers.
fn dependencies(text: &str) -> Vec<(usize, &str)> {
    let mut found = Vec::new();
    let mut is_list = false;
    for (i, line) in text.lines().map(str::trim).enumerate() {
        if let Some(section) = line.strip_prefix('[') {
            let section = section.split(']').next().unwrap_or(section);
            is_list = section.ends_with("dependencies");
            if let Some((_, name)) = section.split_once("dependencies.") {
                found.push((i + 1, name.trim_matches(['"', '\''])));
            }
        } else if is_list {
            let end = line.find(['.', '=', ' ', '#']).unwrap_or(line.len());
            let name = line[..end].trim_matches(['"', '\'']);
            let starts_entry = line[end..].trim_start().starts_with(['.', '=']);
            if !name.is_empty() && starts_entry {
                found.push((i + 1, name));
            }
        }
    }
    found
}

fn has_workspace_lints(text: &str) -> bool {
    let mut lines = text
        .lines()
        .map(str::trim)
        .skip_while(|line| *line != "[lints]")
        .skip(1);
    lines.find(|line| !line.is_empty()) == Some("workspace = true")
}

/// The version of the workspace, from the manifest at the root.
pub(super) fn workspace_version(text: &str) -> Option<&str> {
    let mut lines = text
        .lines()
        .map(str::trim)
        .skip_while(|line| *line != "[workspace.package]");
    lines
        .find_map(|line| line.strip_prefix("version"))
        .map(|rest| rest.trim_start_matches([' ', '=']).trim_matches('"'))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINTS: &str = "[lints]\nworkspace = true\n";

    fn check_arrows(path: &str, text: &str, expected: &[(usize, &str)]) {
        let findings = check(path, &format!("{text}\n{LINTS}"));
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
    fn arrows_go_one_way() {
        let nn = "crates/nn/Cargo.toml";
        check_arrows(nn, "[dependencies]\np2-kernels.workspace = true", &[]);
        check_arrows(
            nn,
            "[dependencies]\nx = \"1\"\np2-diffusion = { path = \"\" }",
            &[(3, "arrow")],
        );
        check_arrows(
            nn,
            "[dev-dependencies]\np2.workspace = true",
            &[(2, "arrow")],
        );
        check_arrows(
            nn,
            "[dependencies.p2-metrics]\nworkspace = true",
            &[(1, "arrow")],
        );
        check_arrows(
            nn,
            "[target.'cfg(unix)'.dependencies]\n\"p2-metrics\" = \"1\"",
            &[(2, "arrow")],
        );
        check_arrows(nn, "[features]\np2-diffusion = []\n# p2-diffusion = 1", &[]);
        check_arrows(
            "crates/kernels/Cargo.toml",
            "[dependencies]\np2-nn = \"1\"",
            &[(2, "arrow")],
        );
        check_arrows(
            "crates/p2/Cargo.toml",
            "[dependencies]\np2-nn = \"1\"\np2-diffusion = \"1\"",
            &[],
        );
    }

    #[test]
    fn crates_of_others_keep_to_their_layer() {
        let candle = "[dependencies]\ncandle-core.workspace = true";
        check_arrows("crates/kernels/Cargo.toml", candle, &[(2, "slices")]);
        check_arrows("crates/diffusion/Cargo.toml", candle, &[]);
        check_arrows(
            "crates/nn/Cargo.toml",
            "[dependencies]\nanyhow = \"1\"",
            &[(2, "error type")],
        );
    }

    #[test]
    fn a_crate_is_known_and_takes_the_lints() {
        check_arrows("crates/new/Cargo.toml", "", &[(0, "agreed first")]);
        assert_eq!(
            check("xtask/Cargo.toml", "[package]\nname = \"xtask\"").len(),
            1
        );
        assert_eq!(check("xtask/Cargo.toml", LINTS), []);
    }

    #[test]
    fn the_version_is_that_of_the_workspace() {
        let text =
            "version = \"9\"\n[workspace.package]\nedition = \"2024\"\nversion = \"0.1.0\"\n";
        assert_eq!(workspace_version(text), Some("0.1.0"));
        assert_eq!(workspace_version("[package]\nversion = \"9\""), None);
    }
}
