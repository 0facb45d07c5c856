// Who gets in.

import { request } from 'node:http';
import { barriers, expect, picture, test } from './page';

/** A request as a browser would not let a script make it: any header. */
function raw(url: string, method: string, headers: Record<string, string>, body = ''): Promise<{ status: number; body: string }> {
  return new Promise((done, failed) => {
    const asked = request(url, { method, headers }, (answer) => {
      let text = '';
      answer.on('data', (bytes) => (text += bytes));
      answer.on('end', () => done({ status: answer.statusCode ?? 0, body: text }));
    });
    asked.on('error', failed);
    asked.end(body);
  });
}

test.describe('without a session', () => {
  test.use({ storageState: { cookies: [], origins: [] } });

  test('the page asks for a code, and a code opens it once', async ({ page, nodes }) => {
    await page.goto(`${nodes.front.api}/`);
    await expect(page.getByText('quelea ui', { exact: true })).toBeVisible();
    expect(await barriers(page)).toEqual([]);
    await picture(page, 'Login');
    await page.getByLabel('Code or address').fill('00');
    await page.getByRole('button', { name: 'Log in' }).click();
    await expect(page.getByRole('alert')).toContainText('quelea ui');

    const door = await nodes.front.door();
    await page.getByLabel('Code or address').fill(door);
    await page.getByRole('button', { name: 'Log in' }).click();
    await expect(page.getByRole('heading', { level: 1 })).toHaveText('Dashboard');
    // What opened it is in no address, and the cookie in no script's reach.
    expect(page.url()).not.toContain('login=');
    expect(await page.evaluate(() => document.cookie)).toBe('');
    const cookies = await page.context().cookies();
    expect(cookies).toMatchObject([{ httpOnly: true, sameSite: 'Strict' }]);

    const code = door.split('#login=')[1];
    const again = await raw(`${nodes.front.api}/api/v1/login`, 'POST', { 'content-type': 'application/json' }, JSON.stringify({ code }));
    expect(again.status).toBe(401);

    await page.getByRole('link', { name: 'Settings' }).click();
    await page.getByRole('button', { name: 'Log out' }).click();
    await expect(page.getByLabel('Code or address')).toBeVisible();
    const cookie = `${cookies[0]!.name}=${cookies[0]!.value}`;
    expect((await raw(`${nodes.front.api}/api/v1/status`, 'GET', { cookie })).status).toBe(401);
  });
});

test('a cookie alone changes nothing, other origins and names get nothing', async ({ page, open, nodes }) => {
  await open('');
  await expect(page.getByRole('heading', { level: 1 })).toHaveText('Dashboard');
  const [kept] = await page.context().cookies();
  const cookie = `${kept!.name}=${kept!.value}`;
  const csrf = await page.evaluate(() => localStorage.getItem('quelea.csrf'));
  const { api } = nodes.front;
  const host = new URL(api).host;
  const write = (headers: Record<string, string>) =>
    raw(`${api}/api/v1/peers/unban`, 'POST', { cookie, 'content-type': 'application/json', ...headers }, JSON.stringify({ subject: nodes.workers[0]!.peer }));

  expect((await write({})).status).toBe(403);
  expect((await write({ 'x-quelea-csrf': '00' })).status).toBe(403);
  expect((await write({ 'x-quelea-csrf': csrf! })).status).toBe(200);
  expect((await write({ 'x-quelea-csrf': csrf!, origin: `http://${host}` })).status).toBe(200);
  expect((await write({ 'x-quelea-csrf': csrf!, origin: 'http://evil.example' })).status).toBe(403);
  expect((await write({ 'x-quelea-csrf': csrf!, 'sec-fetch-site': 'same-site' })).status).toBe(403);
  for (const path of ['/', '/api/v1/status']) {
    expect((await raw(api + path, 'GET', { cookie, host: 'evil.example' })).status).toBe(421);
  }
  expect((await raw(`${api}/api/v1/status`, 'GET', { cookie, origin: 'null' })).status).toBe(403);
  expect((await raw(`${api}/api/v1/status`, 'GET', { cookie })).status).toBe(200);
});
