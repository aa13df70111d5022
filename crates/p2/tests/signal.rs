//! The first signal asks to stop, the second ends the process at once.

#![allow(clippy::disallowed_methods, reason = "tests write scratch files")]
#![cfg(unix)]
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use p2::signal::{Signal, Stop};
use rustix::process::{Pid, kill_process};

const FOLDER: &str = "P2_SIGNAL_TEST_FOLDER";
const PATIENCE: Duration = Duration::from_secs(20);

/// Not a test of its own: a process that is asked to stop and takes long, as this program called
/// again by the other test.
#[test]
fn child() {
    let Some(folder) = std::env::var_os(FOLDER) else {
        return;
    };
    let folder = Path::new(&folder);
    let stop = Stop::install().unwrap();
    assert_eq!(stop.requested(), None);
    fs::write(folder.join("ready"), "").unwrap();
    let start = Instant::now();
    while start.elapsed() < PATIENCE {
        if let Some(signal) = stop.requested() {
            fs::write(folder.join("asked.tmp"), format!("{signal:?}")).unwrap();
            fs::rename(folder.join("asked.tmp"), folder.join("asked")).unwrap();
        }
        sleep(Duration::from_millis(5));
    }
}

fn wait_for(path: &Path) {
    let start = Instant::now();
    while !path.exists() {
        assert!(
            start.elapsed() < PATIENCE,
            "{} did not come",
            path.display()
        );
        sleep(Duration::from_millis(5));
    }
}

fn send(child: &Child, signal: Signal) {
    let signal = match signal {
        Signal::Interrupt => rustix::process::Signal::INT,
        Signal::Terminate => rustix::process::Signal::TERM,
    };
    kill_process(Pid::from_child(child), signal).unwrap();
}

#[test]
fn one_signal_asks_and_a_second_one_ends() {
    for (first, second, exit_code) in [
        (Signal::Interrupt, Signal::Interrupt, 130),
        (Signal::Terminate, Signal::Interrupt, 130),
        (Signal::Interrupt, Signal::Terminate, 143),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child", "--quiet"])
            .env(FOLDER, folder.path())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        wait_for(&folder.path().join("ready"));
        send(&child, first);
        wait_for(&folder.path().join("asked"));
        let asked = fs::read_to_string(folder.path().join("asked")).unwrap();
        assert_eq!(asked, format!("{first:?}"));
        assert!(
            child.try_wait().unwrap().is_none(),
            "the first signal ended it"
        );
        send(&child, second);
        assert_eq!(
            child.wait().unwrap().code(),
            Some(exit_code),
            "{first:?} {second:?}"
        );
    }
}
