//! `pod-steer web`, and requests of a browser to it.

use std::{
    io::{BufRead as _, BufReader},
    net::{SocketAddr, TcpStream},
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::{
    daemon::Stage,
    http::{self, Answer, Request},
    netns::NetNs,
    process::Process,
    wait,
};

static PAGES: AtomicU32 = AtomicU32::new(0);

/// A page that is served. Dropping it ends it.
#[derive(Debug)]
pub struct Page {
    /// The process.
    pub process: Process,
    /// The address that it has printed.
    pub url: String,
    /// Where it listens.
    pub address: SocketAddr,
    net: NetNs,
}

/// A browser that has opened the address.
#[derive(Clone, Debug)]
pub struct Session {
    /// The folder of the page, with a slash at both ends.
    pub folder: String,
    /// The cookie, as a browser sends it.
    pub cookie: String,
}

impl Page {
    /// Starts it, with further arguments.
    pub fn start(stage: &Stage, args: &[&str]) -> Result<Self> {
        Self::start_by(stage, stage.daemon.cli()?, args)
    }

    /// The same, by a command of another user.
    pub fn start_by(stage: &Stage, mut program: Command, args: &[&str]) -> Result<Self> {
        // Each has its own output.
        let name = format!("page-{}", PAGES.fetch_add(1, Ordering::Relaxed));
        let mut process = stage.host.start(&name, program.arg("web").args(args))?;
        let url = wait::until_ok("the address of the page", || {
            if process.has_ended()? {
                bail!("it has ended: {}", process.stderr());
            }
            Ok(process.stdout().lines().last().filter(|line| line.contains("token=")).map(str::to_owned))
        })?;
        let host = url.strip_prefix("http://").and_then(|rest| rest.split('/').next());
        let address = host.context("no address")?.parse().with_context(|| url.clone())?;
        Ok(Self { process, url, address, net: stage.host.net().try_clone()? })
    }

    /// The path of the printed address, with the token.
    pub fn path(&self) -> &str {
        self.url.find("/?").map_or("", |at| &self.url[at..])
    }

    /// A connection that has sent nothing.
    pub fn connect(&self) -> Result<TcpStream> {
        self.net.run(|| TcpStream::connect(self.address)).context("connecting to the page")
    }

    /// The `Host` header of a browser.
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    /// Sends a request.
    pub fn ask(&self, request: Request) -> Result<Answer> {
        http::ask(&self.net, self.address, request)
    }

    /// A GET request with the right `Host`.
    pub fn get(&self, path: &str, cookie: Option<&str>) -> Result<Answer> {
        let host = self.host();
        let headers: Vec<(&str, &str)> =
            [("Host", host.as_str())].into_iter().chain(cookie.map(|cookie| ("Cookie", cookie))).collect();
        self.ask(Request { method: "GET", path, headers: &headers, body: "" })
    }

    /// Opens the printed address.
    pub fn enter(&self) -> Result<Session> {
        let answer = self.get(self.path(), None)?;
        ensure!(answer.status == 200, "{answer:?}");
        let set = answer.header("set-cookie").context("no cookie")?;
        let mut parts = set.split("; ");
        let cookie = parts.next().unwrap_or_default().to_owned();
        let folder = parts.find_map(|part| part.strip_prefix("Path=")).context("no path")?.to_owned();
        ensure!(
            set.contains("; HttpOnly; SameSite=Strict") && answer.body.contains(&format!("url={folder}")),
            "{answer:?}"
        );
        Ok(Session { folder, cookie })
    }

    /// The page.
    pub fn page(&self, session: &Session) -> Result<String> {
        let answer = self.get(&session.folder, Some(&session.cookie))?;
        ensure!(answer.status == 200, "{answer:?}");
        Ok(answer.body)
    }

    /// Sends a form, from the page's own origin.
    pub fn post(&self, session: &Session, path: &str, form: &str) -> Result<Answer> {
        let (host, path) = (self.host(), format!("{}{path}", session.folder));
        let origin = format!("http://{host}");
        let headers = [
            ("Host", host.as_str()),
            ("Origin", origin.as_str()),
            ("Cookie", session.cookie.as_str()),
            ("Content-Type", "application/x-www-form-urlencoded"),
        ];
        self.ask(Request { method: "POST", path: &path, headers: &headers, body: form })
    }

    /// The secret of the page's forms.
    pub fn form_secret(&self, session: &Session) -> Result<String> {
        let page = self.page(session)?;
        let after = page.split("name=\"form\" value=\"").nth(1).context("the page has no form")?;
        Ok(after.split('"').next().unwrap_or_default().to_owned())
    }

    /// The stream of updates.
    pub fn updates(&self, session: &Session, query: &str) -> Result<Updates> {
        let (host, path) = (self.host(), format!("{}updates{query}", session.folder));
        let headers = [("Host", host.as_str()), ("Cookie", session.cookie.as_str())];
        let request = Request { method: "GET", path: &path, headers: &headers, body: "" };
        let (answer, mut reader) = http::begin(&self.net, self.address, request)?;
        if answer.status != 200 {
            let mut said = String::new();
            reader.read_line(&mut said)?;
            bail!("{} {}", answer.status, said.trim_end());
        }
        ensure!(answer.header("content-type") == Some("text/event-stream"), "{answer:?}");
        Ok(Updates(reader))
    }
}

/// Why an order was refused, in the page that says so.
pub fn alert(html: &str) -> &str {
    html.split("role=\"alert\">").nth(1).and_then(|rest| rest.split("</p>").next()).unwrap_or_default()
}

/// Updates of a page, as they come.
#[derive(Debug)]
pub struct Updates(BufReader<TcpStream>);

impl Updates {
    /// The next one.
    pub fn take(&mut self) -> Result<Value> {
        loop {
            let mut line = String::new();
            let count = self.0.read_line(&mut line).context("waiting for an update")?;
            ensure!(count > 0, "the stream has ended");
            if let Some(data) = line.strip_prefix("data:") {
                return serde_json::from_str(data).with_context(|| format!("reading {data}"));
            }
        }
    }

    /// Waits for an update whose part contains a text.
    pub fn wait_part(&mut self, part: &str, wanted: &str) -> Result<()> {
        self.wait_html(&format!("{wanted:?} in {part}"), part, |html| html.contains(wanted))
    }

    /// Waits for an update in which a part has become empty.
    pub fn wait_empty(&mut self, part: &str) -> Result<()> {
        self.wait_html(&format!("{part} to be empty"), part, str::is_empty)
    }

    fn wait_html(&mut self, what: &str, part: &str, is_wanted: impl Fn(&str) -> bool) -> Result<()> {
        let mut last = String::new();
        wait::until_ok(what, || {
            let update = self.take()?;
            let parts = update["parts"].as_array().context("no parts")?;
            let html = parts.iter().find(|pair| pair[0] == part).and_then(|pair| pair[1].as_str());
            last = html.map_or_else(|| last.clone(), str::to_owned);
            Ok(html.filter(|html| is_wanted(html)).map(drop))
        })
        .with_context(|| format!("it has {last}"))
    }

    /// Waits for an event whose text contains this.
    pub fn wait_event(&mut self, wanted: &str) -> Result<()> {
        wait::until_ok(&format!("an event with {wanted:?}"), || {
            let update = self.take()?;
            let events = update["events"].as_array().context("no events")?;
            Ok(events.iter().any(|event| event.as_str().is_some_and(|event| event.contains(wanted))).then_some(()))
        })
    }
}
