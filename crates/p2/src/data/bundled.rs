//! Image archives inside the binary, so that it can train without any file.

use crate::problem::Problem;

/// What stands before the name of an archive inside the binary, where a path is asked for.
pub const BUNDLED: &str = "bundled:";

/// All archives inside the binary: name and zip. Origin and licence stand beside each in `assets/`.
const ARCHIVES: [(&str, &[u8]); 1] = [(
    "emoji-32",
    include_bytes!("../../../../assets/emoji-32/emoji-32.zip"),
)];

/// The zip archive called `name`.
pub(super) fn archive(name: &str) -> Result<&'static [u8], Problem> {
    match ARCHIVES.iter().find(|(known, _)| *known == name) {
        Some((_, bytes)) => Ok(bytes),
        None => {
            let known = ARCHIVES
                .map(|(name, _)| format!("{BUNDLED}{name}"))
                .join(", ");
            let message = format!("no bundled data called `{name}`");
            Err(Problem::new(message).hint(format!("there is {known}")))
        }
    }
}
