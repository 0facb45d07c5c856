// The page of the address: `#/peers/ID`. No server is asked for it.

export const PAGES = [
  { id: '', title: 'Dashboard', icon: 'dashboard' },
  { id: 'peers', title: 'Peers', icon: 'peers' },
  { id: 'services', title: 'Services', icon: 'services' },
  { id: 'chat', title: 'Chat', icon: 'chat' },
  { id: 'dht', title: 'DHT', icon: 'dht' },
  { id: 'economy', title: 'Economy', icon: 'economy' },
  { id: 'storage', title: 'Storage', icon: 'storage' },
  { id: 'compute', title: 'Compute', icon: 'compute' },
  { id: 'settings', title: 'Settings', icon: 'settings' },
  { id: 'logs', title: 'Logs', icon: 'logs' },
] as const;

class Route {
  page = $state('');
  /** What follows the page in the address. */
  rest = $state('');

  constructor() {
    this.#read();
    window.addEventListener('hashchange', () => this.#read());
  }

  #read(): void {
    const [page = '', ...rest] = location.hash.replace(/^#\/?/, '').split('/');
    this.page = PAGES.some((known) => known.id === page) ? page : '';
    this.rest = decodeURIComponent(rest.join('/'));
  }
}

export const route = new Route();

export function go(path: string): void {
  location.hash = `#/${path}`;
}
