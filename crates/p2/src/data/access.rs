//! Reading files whose disk or network drive may be out of reach for a moment.

use std::io::{self, ErrorKind, Read, Seek, SeekFrom};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::sleep;
use std::time::Duration;

use super::source::Entry;
use crate::fault;
use crate::problem::Problem;

/// How long to wait before each further try.
const PAUSES: [Duration; 3] = [
    Duration::from_millis(50),
    Duration::from_millis(200),
    Duration::from_millis(800),
];

/// Why the bytes of a file cannot be had.
#[derive(Debug)]
pub(super) enum Failure {
    /// What is stored is damaged: another try would find the same.
    Damage(anyhow::Error),
    /// The way to it: a disk, a network, a right, a limit of the system.
    Access(io::Error),
}

impl Failure {
    /// The damage; a file that is merely out of reach is an error instead: an image in its place
    /// would make another run of it, which no later one could be compared with.
    pub(super) fn damage(self, entry: &Entry) -> anyhow::Result<anyhow::Error> {
        let error = match self {
            Self::Damage(damage) => return Ok(damage),
            Self::Access(error) => error,
        };
        Err(Problem::new(format!("cannot read the image {}", entry.name))
            .because("another image in its place would make it another run")
            .caused_by(error)
            .hint("see to its disk or drive, then give the same command again: checkpoints are intact")
            .into())
    }

    /// As [`Failure::damage`] at the first look, where files that are gone or nobody may read are
    /// left out like damaged ones.
    pub(super) fn at_first_look(self, entry: &Entry) -> anyhow::Result<anyhow::Error> {
        match self {
            Self::Access(error) if is_lasting(&error) => {
                Ok(anyhow::Error::new(error).context("cannot open"))
            }
            failure => failure.damage(entry),
        }
    }
}

/// Whether another try would end the same.
pub(super) fn is_lasting(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::NotFound | ErrorKind::PermissionDenied
    )
}

/// Reads with patience: an error of access that may pass is waited for.
pub(super) fn with_patience(
    read: impl Fn() -> Result<Vec<u8>, Failure>,
) -> Result<Vec<u8>, Failure> {
    let once = || {
        fault::io("data.read").map_err(Failure::Access)?;
        read()
    };
    for pause in PAUSES {
        match once() {
            Err(Failure::Access(error)) if !is_lasting(&error) => sleep(pause),
            result => return result,
        }
    }
    once()
}

/// A file that remembers whether reading it failed, so that this can be told from damage in it.
#[derive(Debug)]
pub(super) struct Watched<R> {
    file: R,
    failed: Failed,
}

/// What reading a [`Watched`] file failed with.
#[derive(Debug, Clone, Default)]
pub(super) struct Failed(Arc<Mutex<Option<io::Error>>>);

impl Failed {
    /// The error since the last call, if there was one.
    pub(super) fn take(&self) -> Option<io::Error> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Keeps the error and leaves another one of its kind.
    fn keep(&self, error: io::Error) -> io::Error {
        let kind = error.kind();
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
        kind.into()
    }
}

impl<R> Watched<R> {
    pub(super) fn new(file: R, failed: &Failed) -> Self {
        Self {
            file,
            failed: failed.clone(),
        }
    }
}

impl<R: Read> Read for Watched<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.file.read(buffer) {
            // Readers try again by themselves.
            Err(error) if error.kind() != ErrorKind::Interrupted => Err(self.failed.keep(error)),
            result => result,
        }
    }
}

impl<R: Seek> Seek for Watched<R> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        match self.file.seek(to) {
            // A damaged archive may ask for a place before the file's start.
            Err(error) if error.kind() != ErrorKind::InvalidInput => Err(self.failed.keep(error)),
            result => result,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::io::Cursor;

    use super::*;

    fn entry() -> Entry {
        Entry {
            name: "a.png".into(),
            n_bytes: 1,
            position: 0,
        }
    }

    /// How often a read that always fails so is tried, and the error.
    fn tries(error: impl Fn() -> Failure) -> (usize, Failure) {
        let n_tries = Cell::new(0);
        let failure = with_patience(|| {
            n_tries.set(n_tries.get() + 1);
            Err(error())
        });
        (n_tries.get(), failure.unwrap_err())
    }

    #[test]
    fn only_what_may_pass_is_tried_again() {
        let access = |kind: ErrorKind| tries(|| Failure::Access(kind.into())).0;
        assert_eq!(access(ErrorKind::Other), 4);
        assert_eq!(access(ErrorKind::NotFound), 1);
        assert_eq!(access(ErrorKind::PermissionDenied), 1);
        let (n_tries, damage) = tries(|| Failure::Damage(anyhow::anyhow!("cut off")));
        assert_eq!(n_tries, 1);
        assert_eq!(damage.damage(&entry()).unwrap().to_string(), "cut off");
    }

    #[test]
    fn a_read_that_fails_once_succeeds() {
        let n_tries = Cell::new(0);
        let bytes = with_patience(|| {
            n_tries.set(n_tries.get() + 1);
            match n_tries.get() {
                1 => Err(Failure::Access(io::Error::other("busy"))),
                _ => Ok(vec![7]),
            }
        });
        assert_eq!(bytes.unwrap(), [7]);
    }

    #[test]
    fn what_is_gone_is_damage_at_the_first_look_alone() {
        let gone = || Failure::Access(ErrorKind::NotFound.into());
        assert!(gone().at_first_look(&entry()).is_ok());
        let error = gone().damage(&entry()).unwrap_err().to_string();
        assert_eq!(error, "cannot read the image a.png");
        let busy = Failure::Access(io::Error::other("busy"));
        assert!(busy.at_first_look(&entry()).is_err());
    }

    /// Fails to be read.
    struct Broken;

    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::other("unplugged"))
        }
    }

    #[test]
    fn a_watched_file_remembers_its_own_errors_once() {
        let failed = Failed::default();
        let mut bytes = Vec::new();
        let mut good = Watched::new(Cursor::new([1, 2]), &failed);
        good.read_to_end(&mut bytes).unwrap();
        assert!(good.seek(SeekFrom::Current(-9)).is_err());
        assert!(failed.take().is_none());
        let mut broken = Watched::new(Broken, &failed);
        assert!(broken.read_to_end(&mut bytes).is_err());
        assert_eq!(failed.take().unwrap().to_string(), "unplugged");
        assert!(failed.take().is_none());
    }
}
