//! A real headless Chromium in a test host, driven by chromedriver(1) with the WebDriver protocol.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::Path,
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use crate::{
    daemon::Stage,
    http::{self, Request},
    netns::NetNs,
    process::Process,
    tools, wait,
};

/// The port of chromedriver, in a network namespace of the test.
const PORT: u16 = 9515;
/// The key for the next element.
pub const TAB: &str = "\u{e004}";
/// Enter.
pub const ENTER: &str = "\u{e007}";

/// A browser with one window. Its processes end with the host.
#[derive(Debug)]
pub struct Browser {
    _driver: Process,
    net: NetNs,
    session: String,
}

impl Browser {
    /// Starts it.
    pub fn start(stage: &Stage) -> Result<Self> {
        let mut driver = stage.host.command(tools::find("chromedriver").context("chromedriver is not installed")?)?;
        driver.arg(format!("--port={PORT}")).env("HOME", stage.host.dir());
        for proxy in ["http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"] {
            driver.env_remove(proxy);
        }
        let driver = stage.host.start("chromedriver", &mut driver)?;
        let mut browser = Self { _driver: driver, net: stage.host.net().try_clone()?, session: String::new() };
        wait::until_ok("chromedriver to be ready", || Ok(browser.send("GET", "/status", &Value::Null).ok()))?;
        let profile = format!("--user-data-dir={}", stage.host.dir().join("chromium").display());
        // Root has no sandbox of Chromium's, and the host has no /dev/shm of its own.
        let args = [
            "--headless=new",
            "--no-sandbox",
            "--disable-dev-shm-usage",
            "--disable-gpu",
            "--no-proxy-server",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--hide-scrollbars",
            "--force-device-scale-factor=1",
            &profile,
        ];
        let capabilities = json!({ "capabilities": { "alwaysMatch": {
            "goog:chromeOptions": { "args": args }, "goog:loggingPrefs": { "browser": "ALL" },
        } } });
        let session = browser.send("POST", "/session", &capabilities).context("starting Chromium")?;
        browser.session = session["sessionId"].as_str().context("no session")?.to_owned();
        Ok(browser)
    }

    fn send(&self, method: &str, path: &str, body: &Value) -> Result<Value> {
        let to = SocketAddr::from((Ipv4Addr::LOCALHOST, PORT));
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let headers = [("Host", "localhost"), ("Content-Type", "application/json")];
        let answer = http::ask(&self.net, to, Request { method, path, headers: &headers, body: &body })?;
        let mut value: Value = serde_json::from_str(&answer.body).with_context(|| format!("reading {answer:?}"))?;
        ensure!(answer.status == 200, "{method} {path}: {}", value["value"]["message"]);
        Ok(value["value"].take())
    }

    fn order(&self, command: &str, body: &Value) -> Result<Value> {
        self.send("POST", &format!("/session/{}/{command}", self.session), body)
    }

    /// Opens another tab, which is the one that is driven from now on. The others stay.
    pub fn tab(&self) -> Result<()> {
        let tab = self.order("window/new", &json!({ "type": "tab" }))?;
        self.order("window", &json!({ "handle": tab["handle"] })).map(drop)
    }

    /// The cookies of the page, as the browser sends them.
    pub fn cookies(&self) -> Result<String> {
        let all = self.send("GET", &format!("/session/{}/cookie", self.session), &Value::Null)?;
        let text = |own: &Value| Some(format!("{}={}", own["name"].as_str()?, own["value"].as_str()?));
        Ok(all.as_array().into_iter().flatten().filter_map(text).collect::<Vec<_>>().join("; "))
    }

    /// Opens an address.
    pub fn open(&self, url: &str) -> Result<()> {
        self.order("url", &json!({ "url": url })).map(drop)
    }

    /// The result of a script: the body of a function.
    pub fn run(&self, script: &str) -> Result<Value> {
        self.order("execute/sync", &json!({ "script": script, "args": [] })).with_context(|| script.to_owned())
    }

    /// Waits until a condition holds.
    pub fn wait(&self, condition: &str) -> Result<()> {
        let script = format!("return !!({condition})");
        // During a navigation there is no page.
        wait::until(condition, || self.run(&script).ok().filter(|is| *is == true).map(drop))
            .with_context(|| self.run("return document.body.innerText").unwrap_or_default().to_string())
    }

    /// Presses a key.
    pub fn press(&self, key: &str) -> Result<()> {
        let strokes = json!([{ "type": "keyDown", "value": key }, { "type": "keyUp", "value": key }]);
        self.order("actions", &json!({ "actions": [{ "type": "key", "id": "keys", "actions": strokes }] })).map(drop)
    }

    /// Clicks the first element that matches.
    pub fn click(&self, selector: &str) -> Result<()> {
        let element = self.order("element", &json!({ "using": "css selector", "value": selector }))?;
        let id = element.as_object().and_then(|element| element.values().next()?.as_str()).context("no element")?;
        self.order(&format!("element/{id}/click"), &json!({})).map(drop)
    }

    fn protocol(&self, command: &str, parameters: &Value) -> Result<Value> {
        self.order("goog/cdp/execute", &json!({ "cmd": command, "params": parameters }))
    }

    /// Makes the page so wide. A window cannot be as narrow as a telephone.
    pub fn resize(&self, width: u32, height: u32) -> Result<()> {
        let metrics = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": false });
        self.protocol("Emulation.setDeviceMetricsOverride", &metrics).map(drop)
    }

    /// Sets the theme of the system.
    pub fn theme(&self, theme: &str) -> Result<()> {
        self.media(&[("prefers-color-scheme", theme)])
    }

    /// Sets what the system's user prefers, by the names of style sheets.
    pub fn media(&self, preferences: &[(&str, &str)]) -> Result<()> {
        let features: Vec<Value> =
            preferences.iter().map(|(name, value)| json!({ "name": name, "value": value })).collect();
        self.protocol("Emulation.setEmulatedMedia", &json!({ "features": features })).map(drop)
    }

    /// Switches scripts off or on, for pages that are opened afterwards.
    pub fn scripts(&self, on: bool) -> Result<()> {
        self.protocol("Emulation.setScriptExecutionDisabled", &json!({ "value": !on })).map(drop)
    }

    /// The accessible names and roles of the page, a line each.
    pub fn accessible(&self) -> Result<Vec<String>> {
        let tree = self.protocol("Accessibility.getFullAXTree", &json!({}))?;
        let nodes = tree["nodes"].as_array().context("no tree")?.iter().filter(|node| node["ignored"] == false);
        Ok(nodes
            .map(|node| {
                format!(
                    "{} {}",
                    node["role"]["value"].as_str().unwrap_or_default(),
                    node["name"]["value"].as_str().unwrap_or_default()
                )
            })
            .collect())
    }

    /// Writes a picture of the page, of this height from its top.
    pub fn picture(&self, path: &Path, width: u32, height: u32) -> Result<()> {
        let clip = json!({ "x": 0, "y": 0, "width": width, "height": height, "scale": 1 });
        let kept = json!({ "format": "webp", "quality": 90, "captureBeyondViewport": true, "clip": clip });
        let picture = self.protocol("Page.captureScreenshot", &kept)?;
        let bytes = base64(picture["data"].as_str().context("no picture")?)?;
        fs::write(path, bytes).with_context(|| format!("writing {}", path.display()))
    }

    /// What the console has of errors and of breaches of the content policy since the last call.
    pub fn complaints(&self) -> Result<Vec<String>> {
        let log = self.order("se/log", &json!({ "type": "browser" }))?;
        let entries = log.as_array().cloned().unwrap_or_default();
        let grave = entries.iter().filter(|entry| entry["level"] != "INFO" && entry["level"] != "DEBUG");
        Ok(grave.map(|entry| entry["message"].as_str().unwrap_or_default().to_owned()).collect())
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // It ends its processes; those that do not end with it are killed with the host.
        let _ = self.send("DELETE", &format!("/session/{}", self.session), &Value::Null);
    }
}

fn base64(text: &str) -> Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    let (mut bits, mut count) = (0_u32, 0);
    for letter in text.bytes().take_while(|letter| *letter != b'=') {
        let value = match letter {
            b'A'..=b'Z' => letter - b'A',
            b'a'..=b'z' => letter - b'a' + 26,
            b'0'..=b'9' => letter - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => bail!("{letter} is no letter of base64"),
        };
        (bits, count) = (bits << 6 | u32::from(value), count + 6);
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
            bits &= (1 << count) - 1;
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_read() {
        for (text, bytes) in
            [("", &b""[..]), ("TQ==", b"M"), ("TWE=", b"Ma"), ("TWFu", b"Man"), ("+/8A", &[0xfb, 0xff, 0])]
        {
            assert_eq!(base64(text).unwrap(), bytes, "{text}");
        }
        assert!(base64("a b").is_err());
    }
}
