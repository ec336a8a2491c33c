//! System calls that lie or fail, in a process that runs.

use std::process::{Child, Command, Stdio};

use crate::tools::until;

/// Makes system calls of a process end otherwise than they would; ends with it.
pub(crate) struct Injection(Child);

impl Injection {
    /// Begins it for all threads of a process; `what` as for strace's `inject=`.
    pub(crate) fn attach(pid: u32, what: &str) -> Self {
        let inject = format!("inject={what}");
        let child = Command::new("strace")
            .args(["-f", "-q", "-o", "/dev/null", "-e", &inject, "-p", &pid.to_string()])
            .stdin(Stdio::null())
            .spawn()
            .expect("strace starts");
        let injection = Self(child);
        let tracer = injection.0.id().to_string();
        until("all threads of the node to be traced", || {
            // A process that ended meanwhile, perhaps of what was injected, has no thread to wait for.
            let Ok(tasks) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return Some(()) };
            let traced = |status: &str| {
                let field = |name| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
                field("TracerPid:") == Some(&tracer) || field("State:").is_some_and(|state| state.starts_with('Z'))
            };
            // A thread that has just ended has no status.
            let mut statuses = tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("status")).ok());
            statuses.all(|status| traced(&status)).then_some(())
        });
        injection
    }
}

impl Drop for Injection {
    fn drop(&mut self) {
        // Both fail when it has ended already, with the process that it traced.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
