//! Image archives inside the binary, so that it can train without any file.

use anyhow::{Result, bail};

/// All archives inside the binary: name and zip. Origin and licence stand beside each in `assets/`.
const ARCHIVES: [(&str, &[u8]); 1] = [(
    "emoji-32",
    include_bytes!("../../../../assets/emoji-32/emoji-32.zip"),
)];

/// The zip archive called `name`.
pub(super) fn archive(name: &str) -> Result<&'static [u8]> {
    match ARCHIVES.iter().find(|(known, _)| *known == name) {
        Some((_, bytes)) => Ok(bytes),
        None => {
            let known = ARCHIVES
                .map(|(name, _)| format!("bundled:{name}"))
                .join(", ");
            bail!("no bundled data called `{name}`; there is {known}")
        }
    }
}
