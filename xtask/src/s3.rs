//! A real S3 server on loopback, for the tests of checkpoints at a URL: moto, from PyPI.

use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
};

use anyhow::{Context, bail};

/// The server; it ends with this value.
pub(crate) struct Server {
    child: Child,
    port: u16,
}

impl Server {
    /// Installs the server's packages once, and starts it.
    pub(crate) fn start(root: &Path) -> anyhow::Result<Self> {
        let tools = root.join("tools/s3");
        let packages = root.join("target/s3");
        if !packages.is_dir() {
            install(&tools.join("requirements.txt"), &packages)?;
        }
        let child = Command::new("python3")
            .arg(tools.join("serve.py"))
            .env("PYTHONPATH", &packages)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        let mut server = Self {
            child: child.context("can't run python3")?,
            port: 0,
        };
        server.port = server.said_port()?;
        Ok(server)
    }

    fn said_port(&mut self) -> anyhow::Result<u16> {
        let output = self.child.stdout.take().context("it has no output")?;
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line)?;
        let port = line.trim().parse();
        port.with_context(|| format!("the S3 server says {line:?} instead of its port"))
    }

    /// What the tests, and the object store's client in them, have to be told.
    pub(crate) fn environment(&self) -> [(&'static str, String); 6] {
        [
            ("RETOUCH_TEST_S3", "s3://checkpoints".into()),
            ("AWS_ENDPOINT", format!("http://127.0.0.1:{}", self.port)),
            ("AWS_ALLOW_HTTP", "true".into()),
            ("AWS_ACCESS_KEY_ID", "anyone".into()),
            ("AWS_SECRET_ACCESS_KEY", "anything".into()),
            ("AWS_REGION", "us-east-1".into()),
        ]
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // What it holds is of no use to anyone any more.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn install(requirements: &Path, folder: &Path) -> anyhow::Result<()> {
    // Under another name until it is whole.
    let partial = folder.with_extension("partial");
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "install", "--quiet", "--upgrade", "--target"]);
    pip.arg(&partial).arg("--requirement").arg(requirements);
    println!(
        "> python3 -m pip install --requirement {}",
        requirements.display()
    );
    let status = pip.status().context("can't run python3")?;
    if !status.success() {
        bail!("can't install {}: {status}", requirements.display());
    }
    Ok(std::fs::rename(partial, folder)?)
}
