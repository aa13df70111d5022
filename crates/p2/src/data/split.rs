//! Which images are held out of training: a matter of their names alone.

use std::collections::BTreeMap;

use sha2::{Digest, Sha256};

use crate::config::section::GroupBy;

/// Hashed before each name. Another text is another split, of all data: never change it.
const SALT: &[u8] = b"p2 held-out 1\n";

/// The name of the drawing that `file` shows: all files of a group lie on one side of the split.
pub(super) fn group_of(file: &str, group_by: GroupBy) -> &str {
    match group_by {
        GroupBy::File => file,
        GroupBy::FirstCodePoint => {
            let stem = stem_of(file);
            stem.split_once('-').map_or(stem, |(first, _)| first)
        }
    }
}

/// Whether a file name holds a skin-tone code point.
pub(super) fn has_skin_tone(file: &str) -> bool {
    let tones = 0x1f3fb..=0x1f3ff;
    let code_points = stem_of(file)
        .split('-')
        .map(|part| u32::from_str_radix(part, 16));
    code_points
        .flatten()
        .any(|code_point| tones.contains(&code_point))
}

/// The file name without its folders and extension.
pub(super) fn stem_of(file: &str) -> &str {
    let name = file.rsplit('/').next().unwrap_or(file);
    name.rsplit_once('.').map_or(name, |(stem, _)| stem)
}

/// For each file, whether it is held out, given the group of each file.
///
/// A group is held out if the hash of its name, as a number in `[0, 1)`, is below `share`. So other
/// files and the seed of the run do not matter: the split of old files stays when new ones come,
/// and runs with different seeds can be compared. The price is a share that is met on average only.
/// If that leaves one side empty, it gets the one group that is nearest to it by its hash.
pub(super) fn held_out(groups: &[&str], share: f64) -> Vec<bool> {
    let places: BTreeMap<&str, f64> = groups
        .iter()
        .map(|group| (*group, place_of(group)))
        .collect();
    let mut sorted: Vec<f64> = places.values().copied().collect();
    sorted.sort_by(f64::total_cmp);
    let n_below = sorted.partition_point(|place| *place < share);
    let threshold = match sorted.len() {
        n_groups @ 2.. if share > 0.0 => sorted[n_below.clamp(1, n_groups - 1)],
        _ => 0.0,
    };
    groups
        .iter()
        .map(|group| places.get(group).is_some_and(|place| *place < threshold))
        .collect()
}

/// A fixed number in `[0, 1)` for each name.
fn place_of(group: &str) -> f64 {
    let digest = Sha256::new_with_prefix(SALT)
        .chain_update(group.as_bytes())
        .finalize();
    let bits = digest
        .iter()
        .take(8)
        .fold(0, |bits: u64, byte| bits << 8 | u64::from(*byte));
    (bits >> 11) as f64 * (0.5f64).powi(53)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_files_or_first_code_points() {
        for (file, group_by, expected) in [
            ("a/b-c.png", GroupBy::File, "a/b-c.png"),
            ("a/1f469-1f3fb-200d.png", GroupBy::FirstCodePoint, "1f469"),
            ("1f469.png", GroupBy::FirstCodePoint, "1f469"),
            ("a-b/1f469", GroupBy::FirstCodePoint, "1f469"),
        ] {
            assert_eq!(group_of(file, group_by), expected, "{file}");
        }
    }

    #[test]
    fn skin_tones_are_found_anywhere_in_the_stem() {
        for (file, expected) in [
            ("1f469-1f3fb-200d.png", true),
            ("1f469-1F3FF.png", true),
            ("x/1f3fd.png", true),
            ("1f469.png", false),
            ("1f3fa.png", false),
            ("1f400.png", false),
            ("1f3fb/1f469.png", false),
            ("hand-shake.png", false),
        ] {
            assert_eq!(has_skin_tone(file), expected, "{file}");
        }
    }

    fn names(n: usize) -> Vec<String> {
        (0..n).map(|i| format!("image-{i}.png")).collect()
    }

    fn held_out_of(names: &[String], share: f64) -> Vec<bool> {
        held_out(&names.iter().map(String::as_str).collect::<Vec<_>>(), share)
    }

    #[test]
    fn the_share_is_met_within_sampling_error() {
        for share in [0.0, 0.02, 0.1, 0.5, 0.9] {
            let n = 20_000;
            let n_held_out = held_out_of(&names(n), share)
                .iter()
                .filter(|held| **held)
                .count();
            let error = n_held_out as f64 - share * n as f64;
            let deviation = (share * (1.0 - share) * n as f64).sqrt();
            assert!(
                error.abs() <= 4.0 * deviation,
                "{n_held_out} of {n} for a share of {share}"
            );
        }
    }

    #[test]
    fn added_files_move_no_old_one() {
        let all = held_out_of(&names(2000), 0.1);
        assert_eq!(held_out_of(&names(1000), 0.1), all[..1000]);
    }

    #[test]
    fn the_places_of_names_never_change() {
        for (name, expected) in [
            ("1f600", 0.381_399_989_694_775_3),
            ("image-0.png", 0.051_404_186_142_156_3),
        ] {
            assert!(
                (place_of(name) - expected).abs() < 1e-12,
                "{name}: {}",
                place_of(name)
            );
        }
    }

    #[test]
    fn both_sides_get_a_group_if_there_are_two() {
        for n in 2..20 {
            for share in [1e-9, 0.999_999] {
                let n_held_out = held_out_of(&names(n), share)
                    .iter()
                    .filter(|held| **held)
                    .count();
                let expected = if share < 0.5 { 1 } else { n - 1 };
                assert_eq!(n_held_out, expected, "{n} files, share {share}");
            }
        }
        assert_eq!(held_out_of(&names(1), 0.5), [false]);
        assert_eq!(held_out_of(&names(2), 0.0), [false, false]);
    }

    #[test]
    fn a_group_is_never_divided() {
        let groups: Vec<String> = (0..300).map(|i| format!("{}", i / 3)).collect();
        let held_out = held_out_of(&groups, 0.3);
        assert!(
            held_out
                .chunks(3)
                .all(|drawing| drawing.iter().all(|held| *held == drawing[0]))
        );
    }
}
