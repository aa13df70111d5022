//! Class labels from folder names.

/// The classes of a list of files.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Classes {
    /// Sorted names; empty if no file lies in a folder.
    pub(super) names: Vec<String>,
    /// For each file the index of its class; 0 if there are none.
    pub(super) labels: Vec<u32>,
}

/// The class of a file is the first folder of its name.
///
/// A folder that only wraps the folders of all files is passed over (an archive often has one).
/// Files outside any folder form the class `.` if others lie in one.
pub(super) fn classes(file_names: &[&str]) -> Classes {
    let mut folders: Vec<Vec<&str>> = file_names.iter().map(|name| folders_of(name)).collect();
    while have_wrapper(&folders) {
        for path in &mut folders {
            path.remove(0);
        }
    }
    if folders.iter().all(Vec::is_empty) {
        return Classes {
            names: Vec::new(),
            labels: vec![0; file_names.len()],
        };
    }
    let class_of = |path: &Vec<&str>| path.first().map_or(".", |name| *name).to_owned();
    let mut names: Vec<String> = folders.iter().map(class_of).collect();
    names.sort_unstable();
    names.dedup();
    let labels = folders
        .iter()
        .map(|path| names.partition_point(|name| *name < class_of(path)));
    let labels = labels.map(|label| label as u32).collect();
    Classes { names, labels }
}

/// The folders of `name`, from the root.
fn folders_of(name: &str) -> Vec<&str> {
    let mut parts: Vec<&str> = name.split('/').collect();
    parts.pop();
    parts
}

/// Whether the first folder is the same everywhere and every file has another one below it.
fn have_wrapper(folders: &[Vec<&str>]) -> bool {
    let first = folders.first().and_then(|path| path.first());
    first.is_some()
        && folders
            .iter()
            .all(|path| path.len() > 1 && path.first() == first)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(file_names: &[&str], names: &[&str], labels: &[u32]) {
        let found = classes(file_names);
        assert_eq!(found.names, names, "{file_names:?}");
        assert_eq!(found.labels, labels, "{file_names:?}");
    }

    #[test]
    fn the_class_is_the_first_folder() {
        check(&[], &[], &[]);
        check(&["a.png", "b.png"], &[], &[0, 0]);
        check(
            &["dog/a.png", "cat/b.png", "dog/x/c.png"],
            &["cat", "dog"],
            &[1, 0, 1],
        );
        check(&["cat/a.png"], &["cat"], &[0]);
        check(
            &["set/dog/a.png", "set/cat/b.png"],
            &["cat", "dog"],
            &[1, 0],
        );
        check(&["set/dog/a.png", "set/b.png"], &["set"], &[0, 0]);
        check(&["a.png", "cat/b.png"], &[".", "cat"], &[0, 1]);
    }
}
