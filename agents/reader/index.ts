// Fetches the page whose address is its input and asks a model for a summary. Needs http (with the page's host) and infer.
//
// Input: an https address; after a space a model's id, if it is not to be the demo model.

import { Host, LogLevel } from "@extism/as-pdk";
import { fail, fetch, give, infer, number, text } from "../quelea";

// Characters of the page that are shown to the model.
const MOST: i32 = 4000;

export function run(): i32 {
  const asked = Host.inputString().trim().split(" ");
  if (asked[0].length == 0) return fail("give me an https address");
  const page = fetch(asked[0]);
  let error = page.error;
  if (error !== null) return fail("the page was not fetched: " + error);
  const status = number(page.json, "status");
  const body = text(page.json, "body");
  if (status != 200 || body === null) return fail("the page answers " + status.toString());
  const words = plain(body);
  Host.log(LogLevel.Info, "read " + words.length.toString() + " characters of " + asked[0]);
  const prompt = "Summarise this page in two sentences.\n\n" + words.substr(0, MOST);
  const summary = infer(prompt, asked.length > 1 ? asked[1] : "demo", 96);
  error = summary.error;
  if (error !== null) return fail("no summary: " + error);
  Host.log(LogLevel.Info, "spent " + number(summary.json, "spent").toString() + " micro-credits");
  const said = text(summary.json, "text");
  return give((said === null ? "" : said.trim()) + "\n");
}

/** A page without its tags, scripts and runs of spaces: enough for a model. */
function plain(html: string): string {
  let out = "", tag = "", inside = false, skip = "", space = true;
  for (let i = 0; i < html.length; i++) {
    const c = html.charAt(i);
    if (c == "<") {
      inside = true;
      tag = "";
    } else if (c == ">" && inside) {
      inside = false;
      const name = tag.split(" ")[0].toLowerCase();
      if (skip.length == 0 && (name == "script" || name == "style")) skip = "/" + name;
      else if (name == skip) skip = "";
      if (!space) out += " ";
      space = true;
    } else if (inside) {
      tag += c;
    } else if (skip.length == 0) {
      const blank = c == " " || c == "\n" || c == "\t" || c == "\r";
      if (!blank) out += c;
      else if (!space) out += " ";
      space = blank;
    }
  }
  return out;
}
