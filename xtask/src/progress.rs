//! What a person sees while something takes longer than a second.
//!
//! A step that ends within a second prints nothing. A longer one shows a spinner with the last line of its output (on a
//! terminal), and leaves one line with its time. A failed one shows the end of its output.

use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::{
    io::{BufRead, BufReader, IsTerminal, Read},
    process::{Command, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

/// Steps that end sooner stay silent.
const SILENT: Duration = Duration::from_secs(1);
/// How many lines of a failed command's output are shown.
const SHOWN_ON_FAILURE: usize = 60;

/// A step under way.
pub struct Step {
    title: String,
    start: Instant,
    bar: ProgressBar,
}

impl Step {
    /// Begins; `title` says what is being done ("building the kernel").
    pub fn new(title: impl Into<String>) -> Self {
        let style =
            ProgressStyle::with_template("{spinner} {msg} [{elapsed}]").expect("a valid template");
        let bar =
            ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden()).with_style(style);
        Self {
            title: title.into(),
            start: Instant::now(),
            bar,
        }
    }

    /// Shows `detail` beside the title, once the step has taken long enough to be shown at all.
    pub fn detail(&self, detail: &str) {
        if self.start.elapsed() < SILENT {
            return;
        }
        if self.bar.is_hidden() && std::io::stderr().is_terminal() {
            self.bar.set_draw_target(ProgressDrawTarget::stderr());
            self.bar.enable_steady_tick(Duration::from_millis(100));
        }
        let detail: String = detail.trim().chars().take(60).collect();
        let separator = if detail.is_empty() { "" } else { ": " };
        self.bar
            .set_message(format!("{}{separator}{detail}", self.title));
    }

    /// Ends the step, leaving a line if it took long.
    pub fn done(self) {
        self.bar.finish_and_clear();
        let taken = self.start.elapsed();
        if taken >= SILENT {
            eprintln!("{}: {:.1} s", self.title, taken.as_secs_f64());
        }
    }

    /// Runs `command` as this step and returns what it wrote to standard output.
    pub fn run(self, mut command: Command) -> Result<String> {
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let program = command.get_program().to_string_lossy().into_owned();
        let mut child = command
            .spawn()
            .with_context(|| format!("cannot start {program}"))?;
        let mut stdout = child.stdout.take().expect("piped");
        let (sender, lines) = mpsc::channel();
        let out = thread::spawn(move || {
            let mut text = Vec::new();
            stdout
                .read_to_end(&mut text)
                .map(|_| String::from_utf8_lossy(&text).into_owned())
        });
        let stderr = BufReader::new(child.stderr.take().expect("piped"));
        thread::spawn(move || {
            stderr
                .split(b'\n')
                .map_while(Result::ok)
                .try_for_each(|l| sender.send(l))
        });

        let mut log: Vec<String> = Vec::new();
        loop {
            match lines.recv_timeout(Duration::from_millis(200)) {
                Ok(line) => log.push(String::from_utf8_lossy(&line).into_owned()),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            self.detail(log.last().map_or("", String::as_str));
        }
        let status = child.wait()?;
        let output = out.join().expect("the reader does not panic")?;
        if !status.success() {
            self.bar.finish_and_clear();
            let skipped = log.len().saturating_sub(SHOWN_ON_FAILURE);
            if log.is_empty() {
                eprint!("{output}");
            }
            let noise = |l: &&String| {
                !["Compiling ", "Checking ", "Downloaded "]
                    .iter()
                    .any(|w| l.trim_start().starts_with(w))
            };
            log[skipped..]
                .iter()
                .filter(noise)
                .for_each(|line| eprintln!("{line}"));
            bail!("{} failed ({program}: {status})", self.title);
        }
        self.done();
        Ok(output)
    }
}
