//! Programs that nobody here built: Debian's static busybox, and its dynamic programs with their own ld.so and libc.
//!
//! `cargo xtask test` installs what is missing; run without it, a scenario whose program is missing fails and says so.

use crate::Body;
use std::path::{Path, PathBuf};
use tests::{Boot, Failure, Outcome};

/// A program of the host, found as a shell would.
fn program(name: &str) -> Result<PathBuf, Failure> {
    ["/usr/bin", "/bin", "/usr/sbin", "/sbin"]
        .iter()
        .map(|dir| Path::new(dir).join(name))
        .find(|path| path.is_file())
        .ok_or_else(|| format!("{name} is not installed; `cargo xtask test` installs it"))
}

fn says_line(outcome: &Outcome, text: &str) -> Result<(), Failure> {
    let said = outcome.console.lines().any(|line| line.trim() == text);
    outcome.check(said, &format!("no line {text:?}"))
}

/// A boot of busybox with these arguments.
fn busybox(args: &[&str]) -> Result<Boot, Failure> {
    Ok(Boot::on("default").host_program(&program("busybox")?, args))
}

/// Runs a script in busybox's shell; each of `lines` must be a line of the console, and no call may be missing.
fn script(text: &str, lines: &[&str]) -> Result<Outcome, Failure> {
    said_all(busybox(&["sh", "-c", text])?.succeed()?, lines)
}

/// As [`script`] in bash, with other programs beside it.
fn bash(with: &[&str], text: &str, lines: &[&str]) -> Result<Outcome, Failure> {
    let boot = with.iter().fold(Boot::on("default"), |boot, name| {
        boot.option("--with", *name)
    });
    let boot = boot.host_program(&program("bash")?, &["-c", text]);
    said_all(boot.succeed()?, lines)
}

fn said_all(outcome: Outcome, lines: &[&str]) -> Result<Outcome, Failure> {
    for line in lines {
        says_line(&outcome, line)?;
    }
    outcome.never_says("missing system call")?;
    Ok(outcome)
}

pub const BUSYBOX: &[(&str, usize, Body)] = &[
    ("busybox::echo", 1, || {
        let outcome = busybox(&["echo", "hello from busybox"])?.succeed()?;
        says_line(&outcome, "hello from busybox")
    }),
    ("busybox::true", 1, || {
        busybox(&["true"])?.succeed().map(drop)
    }),
    ("busybox::false", 1, || {
        busybox(&["false"])?.fail().map(drop)
    }),
    ("busybox::ls", 1, || {
        let outcome = busybox(&["ls", "-1", "/bin"])?.succeed()?;
        let said = |name| outcome.console.lines().any(|line| line.trim() == name);
        outcome.check(said("busybox") && said("tiny"), "not all names of /bin")
    }),
    ("busybox::shell_pipeline", 1, || {
        let text = "cd /bin; echo one two three | ./busybox cat | (./busybox wc -w); \
            ./busybox false || echo status $?; ./busybox sleep 0.01 & wait; echo waited";
        script(text, &["3", "status 1", "waited"]).map(drop)
    }),
    ("busybox::applets_by_bare_name", 1, || {
        let text = "echo one two three | cat | wc -w; seq 5 | sort -r | head -n1; \
            x=$(printf '%s' abc | rev); echo $x; (exit 7); echo status $?; \
            ! false && echo not; for i in 1 2 3; do sleep 0.01 & done; wait; echo waited";
        script(text, &["3", "5", "cba", "status 7", "not", "waited"]).map(drop)
    }),
    ("busybox::redirects", 1, || {
        let text = "cd /tmp; { echo out; echo err >&2; } >a 2>b; cat a b | tr a-z A-Z; \
            exec 5<a; read x <&5; echo got $x; cat >>a <<END\nhere\nEND\nwc -l <a; \
            ls none 2>/dev/null || echo failed; ln -s a l; readlink l; rm a b l; ls | wc -l; \
            echo through >/dev/stdout; echo x | cat /dev/stdin";
        let lines = [
            "OUT", "ERR", "got out", "2", "failed", "a", "0", "through", "x",
        ];
        script(text, &lines).map(drop)
    }),
    ("busybox::jobs_and_signals", 1, || {
        let text = "sleep 100 & p=$!; kill -0 $p && echo alive; kill $p; wait $p; echo status $?; \
            trap 'echo trapped' USR1; kill -USR1 $$; \
            timeout 0.1 sleep 100; echo timeout $?; \
            (sleep 100 & echo $!) >/tmp/p; kill -9 $(cat /tmp/p); echo killed";
        let lines = ["alive", "status 143", "trapped", "timeout 143", "killed"];
        script(text, &lines).map(drop)
    }),
    ("busybox::ps", 1, || {
        // The first sleeper has fallen asleep when the second, whose number is 3, wakes.
        let text = "sleep 100 & sleep 0.3; ps -o pid,ppid,stat,comm; echo end";
        let outcome = script(text, &[])?;
        says_row(&outcome, &["1", "0", "S", "busybox"])?;
        says_row(&outcome, &["2", "1", "S", "sleep"])?;
        says_row(&outcome, &["4", "1", "R", "ps"])
    }),
    ("busybox::who_maps_a_file", 1, || {
        // Everybody maps busybox; who has ended no longer does.
        let text = "sleep 100 & sleep 100 & for p in 1 2 3; do \
            until grep -q \"^ *$p [0-9a-f]*-[0-9a-f]* \" /proc/1/rmap; do :; done; echo $p maps it; done; \
            kill 2; wait 2; grep -q '^ *2 ' /proc/3/rmap || echo 2 is gone; kill 3; \
            grep -c 'busybox.* pages cached, i_mmap=global, ' /proc/1/rmap";
        let lines = ["1 maps it", "2 maps it", "3 maps it", "2 is gone", "1"];
        script(text, &lines).map(drop)
    }),
    ("busybox::ls_all_of_proc", 1, || {
        // The list names each file of a process, also of one that ends meanwhile.
        let text = "for i in $(seq 40); do true & done; ls -R /proc >/tmp/l 2>/tmp/e; wait; \
            grep -c '^/proc/1/task/1:$' /tmp/l; grep -v 'No such' /tmp/e | wc -l; \
            find /proc/1 -type f | while read f; do cat $f >/dev/null || echo bad $f; done; echo read";
        let outcome = script(text, &["1", "0", "read"])?;
        outcome.never_says("bad /proc")
    }),
    ("busybox::top", 1, || {
        let outcome = busybox(&["top", "-b", "-n1"])?.succeed()?;
        outcome.says("PID  PPID USER")?;
        outcome.says("top -b -n1")
    }),
    ("busybox::kill_by_name", 1, || {
        let text = "sleep 100 & sleep 200 & pidof sleep | wc -w; killall sleep; wait; \
            pidof sleep | wc -w";
        script(text, &["2", "0"]).map(drop)
    }),
    ("busybox::find_and_xargs", 1, || {
        let text = "mkdir -p /tmp/d/e/f; touch /tmp/d/a /tmp/d/e/b; find /tmp/d -type f | sort; \
            seq 20 | xargs -P 4 -n 1 echo item | wc -l; find /tmp/d -name b -exec echo found {} ';'";
        let lines = ["/tmp/d/a", "/tmp/d/e/b", "20", "found /tmp/d/e/b"];
        script(text, &lines).map(drop)
    }),
    ("busybox::a_pid_namespace", 1, || {
        let text = "unshare -p -f sh -c 'echo pid $$; mkdir /p; mount -t proc proc /p; \
            sleep 100 & set -- /p/[0-9]*; echo there $#; readlink /p/self; umount /p && echo unmounted'; \
            echo status $?; sleep 0.05; set -- /proc/[0-9]*; echo left $#";
        // The shell and sleep there; afterwards only the outer shell is left.
        let lines = ["pid 1", "there 2", "unmounted", "status 0", "left 1"];
        script(text, &lines).map(drop)
    }),
    ("busybox::files_of_the_machine", 1, || {
        let text = "free | head -n1; nproc; uname -s; hostname; id -u; cat /proc/sys/kernel/ostype; \
            df / | tail -n1 | wc -l; mount | grep -c ' /proc '; cat /proc/loadavg | wc -w; \
            head -c 5 /dev/zero | od -An -tx1; head -c 9 /dev/urandom | wc -c; \
            echo x >/dev/full || echo full; echo x >/dev/null && echo null";
        let lines = [
            "8",
            "Linux",
            "tine",
            "0",
            "1",
            "5",
            "00 00 00 00 00",
            "9",
            "full",
            "null",
        ];
        script(text, &lines).map(drop)
    }),
    ("busybox::a_limit_on_open_files", 1, || {
        let text = "ulimit -n 10; ulimit -n; exec 9</dev/null && echo nine; (exec 10</dev/null) || echo refused";
        script(text, &["10", "nine", "refused"]).map(drop)
    }),
];

/// A shell with a terminal of its own.
const SHELL: &str = "PS1='tine> ' busybox setsid -c busybox sh -i; echo outer $?; exit 0";
const PROMPT: &str = "tine> ";

/// What is typed must not come between a shell's echo and its program's start: each step waits for what only the program
/// itself can say, which no echo of a line that is typed looks like.
pub const TERMINAL: &[(&str, usize, Body)] = &[
    ("terminal::interrupt_and_job_control", 1, || {
        let steps = [
            (PROMPT, "echo wrng\x7f\x7f\x7frong $((3*3))\r"),
            ("\nwrong 9", ""),
            (PROMPT, "sh -c 'echo up$((1+1)); exec sleep 1000'\r"),
            ("up2", "\x03"),
            (PROMPT, "echo status $?\r"),
            ("status 130", ""),
            (PROMPT, "sh -c 'echo up$((1+2)); exec sleep 1000'\r"),
            ("up3", "\x1a"),
            ("Stopped", ""),
            (PROMPT, "ps -o stat,comm | grep -c 'T *s[hl]'; bg; jobs\r"),
            ("\n1", ""),
            ("Running", ""),
            (PROMPT, "kill %1; wait; echo gone $((4+4))\r"),
            ("gone 8", ""),
            // A reader in the background is stopped, and reads once it is in front.
            (
                PROMPT,
                "cat & until jobs | grep Stopped; do sleep 0.05; done\r",
            ),
            ("Stopped", ""),
            (PROMPT, "fg\r"),
            ("\ncat", "line\r"),
            ("line\nline", "\x03"),
            (
                PROMPT,
                "stty tostop; echo written & until jobs | grep Stopped; do sleep 0.05; done\r",
            ),
            ("Stopped", ""),
            (PROMPT, "stty -tostop; fg; exit 3\r"),
        ];
        let outcome = busybox(&["sh", "-c", SHELL])?.limit(180).converse(&steps)?;
        says_line(&outcome, "written")?;
        says_line(&outcome, "outer 3")?;
        outcome.never_says("missing system call")
    }),
    ("terminal::line_mode_and_raw", 1, || {
        let raw = "sh -c 'stty raw -echo; echo go$((2+5)); dd bs=1 count=2 2>/dev/null | od -An -tx1; stty sane'\r";
        let steps = [
            (PROMPT, "sh -c 'echo go$((1+1)); cat; echo end $((4*4))'\r"),
            ("go2", "one\x15two\r"),
            ("two\ntwo", "half\x04"),
            ("halfhalf", "\x04"),
            ("end 16", ""),
            (PROMPT, raw),
            ("go7", "\x03\r"),
            ("03 0d", ""),
            (
                PROMPT,
                "stty -a | grep -c -w isig; : </dev/tty && echo own $((2+1))\r",
            ),
            ("\n1", ""),
            ("own 3", ""),
            (PROMPT, "exit\r"),
        ];
        let outcome = busybox(&["sh", "-c", SHELL])?.limit(180).converse(&steps)?;
        says_line(&outcome, "outer 0")
    }),
    ("terminal::end_of_file_ends_the_machine", 1, || {
        let boot = busybox(&["sh", "-i"])?;
        let steps = [
            ("# ", "echo last $((5+5))\r"),
            ("\nlast 10", ""),
            ("# ", "\x04"),
        ];
        boot.limit(180).converse(&steps).map(drop)
    }),
    ("terminal::bash", 1, || {
        let script = "PS1='tine> ' setsid -c bash --norc -i; exit 0";
        let boot = ["setsid", "sleep"]
            .iter()
            .fold(Boot::on("default"), |boot, name| {
                boot.option("--with", *name)
            });
        let boot = boot.host_program(&program("bash")?, &["-c", script]);
        let steps = [
            (PROMPT, "bash -c 'echo up$((1+1)); exec sleep 1000'\r"),
            ("up2", "\x1a"),
            ("Stopped", ""),
            (PROMPT, "bg; jobs; kill %1; wait; echo gone $((3+3))\r"),
            ("Running", ""),
            ("gone 6", ""),
            (PROMPT, "bash -c 'echo up$((1+2)); exec sleep 1000'\r"),
            ("up3", "\x03"),
            (PROMPT, "echo status $?\r"),
            ("status 130", ""),
            (PROMPT, "exit\r"),
        ];
        boot.limit(180).converse(&steps).map(drop)
    }),
];

/// A line of these words, whatever stands between them.
fn says_row(outcome: &Outcome, words: &[&str]) -> Result<(), Failure> {
    let said = outcome
        .console
        .lines()
        .any(|line| line.split_whitespace().eq(words.iter().copied()));
    outcome.check(said, &format!("no line {words:?}"))
}

pub const DYNAMIC: &[(&str, usize, Body)] = &[
    ("dynamic::true", 1, || {
        let boot = Boot::on("default").host_program(&program("true")?, &[]);
        let outcome = boot.succeed()?;
        outcome.never_says("missing system call")
    }),
    ("dynamic::dash", 1, || {
        let boot = Boot::on("default").option("--with", "true");
        let args = ["-c", "/bin/true && echo status $?"];
        let outcome = boot.host_program(&program("dash")?, &args).succeed()?;
        said_all(outcome, &["status 0"]).map(drop)
    }),
    ("dynamic::bash_pipeline", 1, || {
        let text = "for i in 1 2 3; do echo $((i * i)); done | while read x; do echo got $x; done; /bin/ls /bin";
        bash(&["ls"], text, &["got 9"])?.says("tiny")
    }),
    ("dynamic::bash_itself", 1, || {
        let text = "cat <(echo substituted) - <<<here; coproc cat; echo co >&${COPROC[1]}; read x <&${COPROC[0]}; \
            echo $x; a=(1 2 3); echo ${#a[@]}; printf '%(%Y)T\\n' 0; kill %1; wait; echo end";
        let lines = ["substituted", "here", "co", "3", "1970", "end"];
        bash(&["cat"], text, &lines).map(drop)
    }),
    ("dynamic::coreutils", 1, || {
        let with = [
            "ls", "cat", "sort", "wc", "stat", "cp", "mv", "mkdir", "rm", "touch", "ln", "df",
            "nproc", "head", "tail", "env", "id", "seq",
        ];
        let text = "cd /tmp; seq 100 | sort -rn | head -1; mkdir d; touch d/f; ln d/f d/g; stat -c %h d/g; \
            cp /etc/passwd d/p && mv d/p d/q && wc -l <d/q; ls -l d | tail -3 | wc -l; rm -r d; ls | wc -l; \
            nproc; id -un; df / | tail -1 | wc -l; env | wc -l";
        let lines = ["100", "2", "1", "3", "0", "8", "root"];
        bash(&with, text, &lines).map(drop)
    }),
    ("dynamic::ps", 1, || {
        let outcome = bash(&["ps", "sleep"], "sleep 100 & ps -e; ps aux; kill $!", &[])?;
        // Whatever CPU time a loaded host makes of it.
        let row = |pid: &str, name: &str| {
            let mut lines = outcome.console.lines().map(|line| line.split_whitespace());
            lines.any(|mut words| {
                (words.next(), words.next(), words.last()) == (Some(pid), Some("?"), Some(name))
            })
        };
        outcome.check(row("1", "bash") && row("2", "sleep"), "not both processes")?;
        outcome.says("ps aux")
    }),
    ("dynamic::pstree", 1, || {
        let text = "sleep 100 & sleep 100 & pstree -p; kill %1 %2";
        let outcome = bash(&["pstree", "sleep"], text, &[])?;
        outcome.says("bash(1)")?;
        outcome.says("sleep(2)")?;
        outcome.says("pstree(4)")
    }),
    ("dynamic::setsid_and_timeout", 1, || {
        let text = "setsid -w sleep 0.01; echo setsid $?; timeout 0.1 sleep 100; echo timeout $?; \
            timeout -s KILL 0.1 sleep 100; echo killed $?; unshare -p -f --kill-child bash -c 'echo pid $$'";
        let lines = ["setsid 0", "timeout 124", "killed 137", "pid 1"];
        bash(&["setsid", "timeout", "sleep", "unshare"], text, &lines).map(drop)
    }),
    ("dynamic::strace", 1, || {
        let boot = Boot::on("laptop").words("strace=on");
        let outcome = boot.host_program(&program("true")?, &[]).succeed()?;
        outcome.says("/libc.so.6\", O_RDONLY|O_CLOEXEC) = 3")?;
        outcome.says("read(3, \"\\177ELF\\2\\1\\1\\3")?;
        outcome.says("= -1 ENOENT (No such file or directory)")?;
        outcome.says("[pid     1] exit_group(0) = ?")
    }),
    ("dynamic::a_missing_program", 1, || {
        let boot = Boot::on("laptop").host_program(Path::new("no-such-program"), &[]);
        boot.fail()?.says("no-such-program")
    }),
];
