//! Installing Debian packages: what would be run is always said, and with `--no-install` only said.
//!
//! # Problem
//! A fresh machine lacks QEMU and the bare-metal compiler, may be a container with empty package lists, and Debian 12's
//! own QEMU is too old: the right one is in the backports, which may not be configured.
//!
//! # Mechanism
//! A [`Request`] is a plan of shell lines made from what apt knows. A backports source is derived from the sources that
//! are configured already, by changing the suite: this program names no server.

use crate::{ask::ask, progress::Step};
use anyhow::{Context, Result, bail};
use std::{
    fs,
    io::{IsTerminal, Write},
    path::Path,
    process::{Command, Stdio},
};
use xshell::cmd;

const SOURCES: &str = "/etc/apt/sources.list.d";

/// Runs plans, or only prints them.
pub struct Installer {
    allowed: bool,
}

/// What to install and what must be done before.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// Package names.
    pub packages: Vec<String>,
    /// The suite to take them from (`-t`), where the default one won't do.
    pub suite: Option<String>,
    /// A source to add first: file name and contents.
    pub source: Option<(String, String)>,
}

/// A version in some suite, from `apt-cache madison`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Available {
    /// Upstream's major and minor version.
    pub version: (u32, u32),
    /// The suite it is in.
    pub suite: String,
}

impl Request {
    /// Packages from wherever apt takes them.
    pub fn packages(names: &[&str]) -> Self {
        Self {
            packages: names.iter().map(|n| n.to_string()).collect(),
            ..Self::default()
        }
    }

    /// The shell lines of this plan, for a person to copy.
    fn lines(&self, sudo: &str) -> Vec<String> {
        let mut lines = Vec::new();
        if let Some((name, text)) = &self.source {
            let quoted: Vec<String> = text.lines().map(|l| format!("'{l}'")).collect();
            let tee = format!("{sudo}tee {SOURCES}/{name}");
            lines.push(format!("printf '%s\\n' {} | {tee}", quoted.join(" ")));
        }
        lines.push(format!("{sudo}apt-get update"));
        lines.push(format!("{sudo}apt-get {}", self.install_args().join(" ")));
        lines
    }

    fn install_args(&self) -> Vec<String> {
        let mut args = vec![
            "install".into(),
            "-y".into(),
            "--no-install-recommends".into(),
            "--no-remove".into(),
        ];
        if let Some(suite) = &self.suite {
            args.extend(["-t".into(), suite.clone()]);
        }
        args.extend(self.packages.iter().cloned());
        args
    }

    /// The plan as one line.
    pub fn line(&self) -> String {
        self.lines(sudo_prefix()).join(" && ")
    }
}

impl Installer {
    /// `allowed`: whether anything may be installed.
    pub fn new(allowed: bool) -> Self {
        Self { allowed }
    }

    /// Whether anything may be fetched.
    pub fn may_fetch(&self) -> bool {
        self.allowed
    }

    /// Refreshes the package lists, where installing is allowed.
    pub fn refresh(&self) -> Result<()> {
        if !self.allowed || !have_apt() {
            return Ok(());
        }
        self.privileged(
            "refreshing the package lists",
            "apt-get",
            &["update".into()],
        )
    }

    /// Carries out `plan`; `why` says what it is for. Without permission, or without root or sudo, prints it and fails.
    pub fn install(&self, why: &str, plan: &Request) -> Result<()> {
        if !have_apt() {
            bail!("{why} is missing, and this is no Debian-like system: please install it by hand");
        }
        if !self.allowed {
            bail!(
                "{why} is missing; nothing is installed with --no-install. This would:\n  {}",
                plan.line()
            );
        }
        eprintln!("{why} is missing. Installing it:");
        plan.lines(sudo_prefix())
            .iter()
            .for_each(|line| eprintln!("  {line}"));
        if let Some((name, text)) = &plan.source {
            self.write_source(Path::new(SOURCES).join(name).as_path(), text)?;
        }
        self.privileged(
            "refreshing the package lists",
            "apt-get",
            &["update".into()],
        )?;
        self.privileged(
            &format!("installing {}", plan.packages.join(" ")),
            "apt-get",
            &plan.install_args(),
        )
        .with_context(|| format!("please try it by hand: {}", plan.line()))
    }

    fn write_source(&self, path: &Path, text: &str) -> Result<()> {
        if is_root() {
            return fs::write(path, text)
                .with_context(|| format!("cannot write {}", path.display()));
        }
        let mut tee = self.command("tee", &[path.display().to_string()])?;
        let mut child = tee
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .context("cannot start sudo")?;
        child
            .stdin
            .take()
            .expect("piped")
            .write_all(text.as_bytes())?;
        if !child.wait()?.success() {
            bail!("cannot write {}", path.display());
        }
        Ok(())
    }

    fn privileged(&self, title: &str, program: &str, args: &[String]) -> Result<()> {
        if !is_root() && std::io::stdin().is_terminal() {
            // Let sudo ask for its password before the spinner hides the question.
            let asked = Command::new("sudo")
                .arg("-v")
                .status()
                .context("cannot start sudo")?;
            if !asked.success() {
                bail!("sudo was refused");
            }
        }
        let mut command = self.command(program, args)?;
        command.env("DEBIAN_FRONTEND", "noninteractive");
        Step::new(title).run(command).map(drop)
    }

    fn command(&self, program: &str, args: &[String]) -> Result<Command> {
        if is_root() {
            let mut command = Command::new(program);
            command.args(args);
            return Ok(command);
        }
        if find_program("sudo").is_none() {
            bail!(
                "this needs root, and there is no sudo; as root: {program} {}",
                args.join(" ")
            );
        }
        let mut command = Command::new("sudo");
        command
            .args(["-n", "env", "DEBIAN_FRONTEND=noninteractive", program])
            .args(args);
        Ok(command)
    }
}

/// Whether there is apt at all.
pub fn have_apt() -> bool {
    find_program("apt-get").is_some()
}

/// The full path of a program on the PATH.
pub fn find_program(name: &str) -> Option<std::path::PathBuf> {
    let path = std::env::var_os("PATH")?;
    let usual = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"].map(Into::into);
    std::env::split_paths(&path)
        .chain(usual)
        .map(|dir| dir.join(name))
        .find(|p| p.is_file())
}

fn is_root() -> bool {
    ask(|sh| cmd!(sh, "id -u")).is_some_and(|uid| uid.trim() == "0")
}

fn sudo_prefix() -> &'static str {
    if is_root() { "" } else { "sudo " }
}

/// What apt knows of `package`, newest first. Empty when it knows nothing, or there are no lists.
pub fn available(package: &str) -> Vec<Available> {
    let text = ask(|sh| cmd!(sh, "apt-cache madison {package}"));
    text.map(|text| parse_madison(&text)).unwrap_or_default()
}

fn parse_madison(text: &str) -> Vec<Available> {
    let row = |line: &str| {
        let mut cells = line.split('|').map(str::trim).skip(1);
        let version = parse_version(cells.next()?)?;
        let place = cells.next()?.split_whitespace().nth(1)?;
        Some(Available {
            version,
            suite: place.split('/').next()?.to_string(),
        })
    };
    text.lines().filter_map(row).collect()
}

/// Major and minor of a Debian version such as `1:10.0.2+ds-2~bpo12+1`.
fn parse_version(text: &str) -> Option<(u32, u32)> {
    let upstream = text.split_once(':').map_or(text, |(_, rest)| rest);
    let mut numbers = upstream.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// The plan that gets `package` in a version of at least `minimum` on the release `codename`; `None` when there is no
/// way. `sources` are the texts of the configured source files.
pub fn plan(
    package: &str,
    minimum: (u32, u32),
    codename: &str,
    available: &[Available],
    sources: &[String],
) -> Option<Request> {
    let plain = Request::packages(&[package]);
    let good: Vec<&Available> = available.iter().filter(|a| a.version >= minimum).collect();
    if good.iter().any(|a| !a.suite.ends_with("-backports")) {
        return Some(plain);
    }
    if let Some(found) = good.first() {
        return Some(Request {
            suite: Some(found.suite.clone()),
            ..plain
        });
    }
    // Nothing good is known. Releases after Debian 12 have it themselves once their lists are fetched.
    if available.is_empty() && codename != "bookworm" {
        return Some(plain);
    }
    let suite = format!("{codename}-backports");
    let source = sources.iter().find_map(|text| backports(text, codename));
    source.map(|source| Request {
        suite: Some(suite),
        source: Some(source),
        ..plain
    })
}

/// A source file for the backports, from a configured one that has the release itself.
fn backports(text: &str, codename: &str) -> Option<(String, String)> {
    derived(text, codename, &format!("{codename}-backports"))
}

/// A source file for `suite`, from a configured one that has the release `codename`.
pub fn derived(text: &str, codename: &str, suite: &str) -> Option<(String, String)> {
    let name = suite.rsplit('-').next().unwrap_or(suite);
    for paragraph in text.split("\n\n") {
        let lines = paragraph
            .lines()
            .filter(|l| !l.starts_with('#') && !l.trim().is_empty());
        let field = |l: &str, name: &str| {
            l.split_once(':')
                .filter(|(k, _)| k.eq_ignore_ascii_case(name))
                .is_some()
        };
        let has_release =
            |l: &str| field(l, "Suites") && l.split_whitespace().any(|w| w == codename);
        if lines.clone().any(has_release) && lines.clone().any(|l| field(l, "URIs")) {
            let changed = lines.map(|l| match l {
                l if field(l, "Suites") => format!("Suites: {suite}\n"),
                l if field(l, "Components") => "Components: main\n".to_string(),
                l => format!("{l}\n"),
            });
            return Some((format!("tine-{name}.sources"), changed.collect()));
        }
    }
    let one_line = text.lines().find(|l| {
        let words: Vec<&str> = l.split_whitespace().collect();
        words.first() == Some(&"deb") && words.contains(&codename) && words.contains(&"main")
    })?;
    let (before, _) = one_line.split_once(&format!(" {codename} "))?;
    Some((
        format!("tine-{name}.list"),
        format!("{before} {suite} main\n"),
    ))
}

/// The texts of all configured source files.
pub fn sources() -> Vec<String> {
    let listed = fs::read_dir(SOURCES)
        .into_iter()
        .flatten()
        .flatten()
        .map(|e| e.path());
    let all = listed.chain(["/etc/apt/sources.list".into()]);
    let wanted = all.filter(|p| p.extension().is_some_and(|e| e == "list" || e == "sources"));
    wanted.filter_map(|p| fs::read_to_string(p).ok()).collect()
}

/// The release's code name, from os-release; empty when it has none.
pub fn codename() -> String {
    let text = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let line = text
        .lines()
        .find_map(|l| l.strip_prefix("VERSION_CODENAME="));
    line.unwrap_or_default().trim_matches('"').to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MADISON: &str = "\
qemu-system-x86 | 1:10.0.2+ds-2~bpo12+1 | http://mirror/debian bookworm-backports/main amd64 Packages
qemu-system-x86 | 1:7.2+dfsg-7+deb12u18 | http://mirror/debian bookworm/main amd64 Packages
";
    const DEB822: &str = "Types: deb\n# a comment\nURIs: http://mirror/debian\nSuites: bookworm bookworm-updates\n\
        Components: main contrib\nSigned-By: /usr/share/keyrings/k.gpg\n\nTypes: deb\nURIs: http://mirror/security\n\
        Suites: bookworm-security\nComponents: main\n";
    const ONE_LINE: &str =
        "# old style\ndeb [signed-by=/k.gpg] http://mirror/debian bookworm main contrib\n";

    #[test]
    fn reads_madison() {
        let got = parse_madison(MADISON);
        assert_eq!(
            got[0],
            Available {
                version: (10, 0),
                suite: "bookworm-backports".into()
            }
        );
        assert_eq!(
            got[1],
            Available {
                version: (7, 2),
                suite: "bookworm".into()
            }
        );
        assert_eq!(parse_madison("nonsense\n| |\n"), vec![]);
    }

    #[test]
    fn newer_release_is_plain() {
        let trixie = [Available {
            version: (10, 0),
            suite: "trixie".into(),
        }];
        let expected = Some(Request::packages(&["qemu"]));
        assert_eq!(plan("qemu", (9, 0), "trixie", &trixie, &[]), expected);
        assert_eq!(
            plan("qemu", (9, 0), "trixie", &[], &[]),
            expected,
            "lists not fetched yet"
        );
    }

    #[test]
    fn configured_backports_are_used() {
        let got = plan("qemu", (9, 0), "bookworm", &parse_madison(MADISON), &[]).unwrap();
        assert_eq!(
            (got.suite.as_deref(), got.source),
            (Some("bookworm-backports"), None)
        );
    }

    #[test]
    fn backports_are_derived() {
        let old = [Available {
            version: (7, 2),
            suite: "bookworm".into(),
        }];
        for (known, text) in [(&old[..], DEB822), (&[], DEB822)] {
            let got = plan("qemu", (9, 0), "bookworm", known, &[text.into()]).unwrap();
            let (name, source) = got.source.unwrap();
            assert_eq!(name, "tine-backports.sources");
            assert_eq!(
                source,
                "Types: deb\nURIs: http://mirror/debian\nSuites: bookworm-backports\nComponents: main\n\
                 Signed-By: /usr/share/keyrings/k.gpg\n"
            );
        }
        let got = plan("qemu", (9, 0), "bookworm", &old, &[ONE_LINE.into()]).unwrap();
        let (name, source) = got.source.unwrap();
        assert_eq!(name, "tine-backports.list");
        assert_eq!(
            source,
            "deb [signed-by=/k.gpg] http://mirror/debian bookworm-backports main\n"
        );
        assert_eq!(
            plan("qemu", (9, 0), "bookworm", &old, &["# empty".into()]),
            None
        );
    }

    #[test]
    fn lines_can_be_copied() {
        let plan = Request {
            suite: Some("s".into()),
            ..Request::packages(&["a", "b"])
        };
        let install = "sudo apt-get install -y --no-install-recommends --no-remove -t s a b";
        assert_eq!(plan.lines("sudo "), ["sudo apt-get update", install]);
    }
}
